"""The report of the policy benchmark: tables of what was run, and whether the bounds hold.

Owns the bounds and the page. A bound that does not hold is said on the page, and makes the run end with 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # what JSON carries

from policies.contenders import CONTENDERS
from policies.instances import CARDS_GIB, WORKLOADS
from policies.outcome import percentile
from table import machine, written_on

GIB = 1 << 30
OURS = "tidegate"
OPTIMUM = "optimum"
SMALL = "small"
ABOVE_BEST_MAX = 1.02
RATIO_MEAN_MAX = 1.15
RATIO_P95_MAX = 1.5
Result = dict[str, Any]  # Any: numbers and lists of numbers.


def report(path: Path, results: Mapping[Any, Result]) -> int:  # Any: cases of `run.py`, which imports this.
    """Write the page; 1 when a bound does not hold."""
    groups = _groups(results)
    sections, broken = [], []
    for make in (_by_workload, _by_card, _dominated, _optimum):
        lines, faults = make(groups) if make is not _optimum else make(results)
        sections.append("\n".join(lines))
        broken += faults
    verdict = "Every bound holds." if not broken else "Bounds that do not hold: " + "; ".join(broken) + "."
    head = ["# Policies compared in the simulator", "", f"{written_on()}; {machine()}", ""]
    text = "\n".join([*head, INTRODUCTION, verdict]) + "\n\n" + "\n\n".join(sections) + "\n"
    path.write_text(text, encoding="utf-8")
    print(text, flush=True)
    return 1 if broken else 0


INTRODUCTION = """\
The same requests under every policy, in a simulated world with the figures of `costs.toml`: bytes are those
of the real engines, times are priors where the file says so, because no card was at hand. Cost: image delay +
3 x chat delay, in seconds for each instance; a chat's delay is its wait for the first token and every pause
after it. A failed request adds two minutes, which is less than a queue of long images costs: on 6 GiB rivals
come out below for images that they cannot make at all. Only instances that every policy was run on are
counted. The full run is of 200 instances of each workload and card; the counts are of those run so far.
"""


def _groups(
    results: Mapping[Any, Result],
) -> dict[tuple[str, int], dict[str, list[Result]]]:  # Any: see above
    """Results by workload and card, of the seeds that every policy has."""
    seeds: dict[tuple[str, int], dict[int, dict[str, Result]]] = {}
    for case, result in results.items():
        if case.workload != SMALL:
            cell = seeds.setdefault((case.workload, case.card_gib), {})
            cell.setdefault(case.seed, {})[case.policy] = result
    groups: dict[tuple[str, int], dict[str, list[Result]]] = {}
    for key, by_seed in seeds.items():
        whole = [found for found in by_seed.values() if len(found) == len(CONTENDERS)]
        if whole:
            groups[key] = {policy: [found[policy] for found in whole] for policy in CONTENDERS}
    return groups


Groups = dict[tuple[str, int], dict[str, list[Result]]]
Section = tuple[list[str], list[str]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _together(groups: Groups, workload: str) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {policy: [] for policy in CONTENDERS}
    for (name, _), cell in groups.items():
        if workload in ("", name):
            for policy, results in cell.items():
                found[policy] += results
    return found


def _metrics(results: list[Result]) -> dict[str, float]:
    images = [ms for result in results for ms in result["image_ms"]]
    chats = [ms for result in results for ms in result["chat_ms"]]
    first = [ms for result in results for ms in result["first_token_ms"]]
    return {
        "failed": sum(result["failed_images"] + result["failed_chats"] for result in results),
        "failed_images": sum(result["failed_images"] for result in results),
        "failed_chats": sum(result["failed_chats"] for result in results),
        "image": statistics.fmean(images) / 1000 if images else 0.0,
        "chat": statistics.fmean(chats) / 1000 if chats else 0.0,
        "first_p50": percentile(first, 50) / 1000,
        "first_p95": percentile(first, 95) / 1000,
        "moved": sum(result["moved_bytes"] for result in results) / GIB / len(results),
        "cost": sum(result["cost_ms"] for result in results) / 1000 / len(results),
    }


def _by_workload(groups: Groups) -> Section:
    lines, broken = [], []
    head = "policy, failed images, failed chats, image s, chat s, first token p50 s, p95 s, GiB moved, cost s"
    head += ", x best"
    shown = ("image", "chat", "first_p50", "first_p95", "moved", "cost")
    for workload in (*(name for name in WORKLOADS if name != SMALL), ""):
        together = _together(groups, workload)
        count = len(together[OURS])
        if not count:
            continue
        found = {policy: _metrics(results) for policy, results in together.items()}
        best = min(metrics["cost"] for metrics in found.values())
        rows = [
            [
                policy,
                f"{metrics['failed_images']:.0f}",
                f"{metrics['failed_chats']:.0f}",
                *(f"{metrics[name]:.1f}" for name in shown),
                f"{metrics['cost'] / best:.3f}",
            ]
            for policy, metrics in found.items()
        ]
        title = f"## {workload or 'All workloads'}: {count} instances"
        lines += [title, "", *_table(head.split(", "), rows), ""]
        above = found[OURS]["cost"] / best
        if above > (ABOVE_BEST_MAX if workload else 1.0):
            broken.append(f"cost {above:.3f} x the best {'in ' + workload if workload else 'over all'}")
        if found[OURS]["failed"]:
            broken.append(f"{found[OURS]['failed']:.0f} failed in {workload or 'all'}")
    return lines, broken


def _by_card(groups: Groups) -> Section:
    """Cost against the best of each card."""
    rows = []
    for (workload, card_gib), cell in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1])):
        costs = {policy: sum(result["cost_ms"] for result in results) for policy, results in cell.items()}
        best = min(costs.values())
        failed = {policy: int(_metrics(found)["failed"]) for policy, found in cell.items()}
        count = str(len(cell[OURS]))
        texts = [
            f"{costs[policy] / best:.3f}" + (f" ({failed[policy]} failed)" if failed[policy] else "")
            for policy in CONTENDERS
        ]
        rows.append([workload, f"{card_gib}", count, *texts])
    lines = ["## Cost against the best, by card", ""]
    return [*lines, *_table(["workload", "GiB", "instances", *CONTENDERS], rows)], []


def _dominated(groups: Groups) -> Section:
    """Whether anybody is as good as we are in everything, and better in something."""
    names = ("failed", "image", "chat", "first_p50", "first_p95", "moved", "cost")
    broken = []
    for (workload, card_gib), cell in groups.items():
        ours = _metrics(cell[OURS])
        for policy in CONTENDERS:
            if policy.startswith(OURS):
                continue
            other = _metrics(cell[policy])
            # To the hundredth: what differs by less is not a difference that anybody sees.
            pairs = [(round(other[name], 2), round(ours[name], 2)) for name in names]
            if all(theirs <= mine for theirs, mine in pairs) and any(theirs < mine for theirs, mine in pairs):
                broken.append(f"dominated by {policy} in {workload} on {card_gib} GiB")
    text = "Nobody is as good in every figure and better in one." if not broken else "\n".join(broken)
    return ["## Dominated", "", text], broken


def _optimum(results: Mapping[Any, Result]) -> Section:  # Any: see above.
    """How far from the best that could have been done."""
    cells: dict[tuple[int, int], dict[str, Result]] = {}
    for case, result in results.items():
        if case.workload == SMALL:
            cells.setdefault((case.seed, case.card_gib), {})[case.policy] = result
    whole = [cell for cell in cells.values() if len(cell) == len(CONTENDERS) + 1]
    solved = [cell for cell in whole if cell[OPTIMUM]["cost_ms"] is not None]
    if not solved:
        return [], []
    rows, broken = [], []
    for policy in CONTENDERS:
        ratios = [cell[policy]["cost_ms"] / cell[OPTIMUM]["cost_ms"] for cell in solved]
        mean, high = statistics.fmean(ratios), percentile(ratios, 95)
        figures = (mean, percentile(ratios, 50), high, max(ratios))
        rows.append([policy, *(f"{figure:.3f}" for figure in figures)])
        if policy == OURS and mean > RATIO_MEAN_MAX:
            broken.append(f"ratio to the optimum {mean:.3f} in the mean")
        if policy == OURS and high > RATIO_P95_MAX:
            broken.append(f"ratio to the optimum {high:.3f} at p95")
    by_card = _ratios_by_card(cells)
    title = f"## Cost against the optimum: {len(solved)} instances of 8 to 12 requests"
    text = "The optimum knows the future; its machine is described in `offline.py`."
    text += f" {len(whole) - len(solved)} further searches were given up at their bound."
    table = _table(["policy", "mean", "median", "p95", "most"], rows)
    return [title, "", text, "", *table, "", WHY, "", *by_card], broken


WHY = """\
The smaller the card, the further from the optimum. Who knows the future lets an answer wait for the one
moment when the card is free, where tidegate, which does not, begins at once with as many layers as fit; and
in the optimum's machine memory is freed, and processes start and end, at once and for nothing."""


def _ratios_by_card(cells: Mapping[tuple[int, int], dict[str, Result]]) -> list[str]:
    found: dict[int, list[float]] = {}
    for (_, card_gib), cell in sorted(cells.items(), key=lambda item: item[0][1]):
        if len(cell) == len(CONTENDERS) + 1 and cell[OPTIMUM]["cost_ms"] is not None:
            found.setdefault(card_gib, []).append(cell[OURS]["cost_ms"] / cell[OPTIMUM]["cost_ms"])
    rows = [
        [f"{card_gib}", f"{len(ratios)}", f"{statistics.fmean(ratios):.3f}", f"{percentile(ratios, 95):.3f}"]
        for card_gib, ratios in found.items()
    ]
    return _table(["GiB", "instances", f"{OURS}, mean", "p95"], rows)


assert SMALL in WORKLOADS and CARDS_GIB, "the report knows the workloads"
