"""The policy benchmark: one simulated world, several policies, the same requests; what it costs whom.

Each run is a pure function of (workload, card, seed, policy). Results are kept in a file of lines, so that a
run that was interrupted goes on where it stopped; they are dropped when the figures or the code they depend
on have changed. Writes `policies.md` beside it.

    python bench/policies/run.py [--seeds 200] [--small 100] [--minutes 10] [--results FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # what JSON carries

from policies.contenders import CONTENDERS
from policies.costs import Costs, read_costs
from policies.instances import CARDS_GIB, WORKLOADS, instance
from policies.offline import optimum_ms
from policies.report import report
from policies.world import World

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
KEPT = TREE / "build" / "policies.jsonl"
NODES_MAX = 60_000
SMALL = "small"
OPTIMUM = "optimum"


@dataclass(frozen=True, slots=True)
class Case:
    """One run; the policy may be OPTIMUM."""

    workload: str
    card_gib: int
    seed: int
    policy: str


def code_of(policy: str) -> str:
    """Fingerprint of everything that a policy's results depend on."""
    files = [*sorted(HERE.glob("*.py")), HERE / "costs.toml"]
    files = [file for file in files if file.name not in ("run.py", "report.py", "offline.py")]
    if policy == OPTIMUM:
        files.append(HERE / "offline.py")
    if not policy.startswith("tidegate"):
        files.remove(HERE / "contenders.py")  # It names them; what they do stands elsewhere.
    else:
        files += sorted((TREE / "src" / "tidegate" / "core").rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def cases(seeds: int, small: int) -> Iterator[Case]:
    """All runs, seed by seed, so that what was run is balanced whenever it stops."""
    for seed in range(max(seeds, small)):
        for workload in WORKLOADS:
            if seed >= (small if workload == SMALL else seeds):
                continue
            cards = (CARDS_GIB[seed % len(CARDS_GIB)],) if workload == SMALL else CARDS_GIB
            for card_gib in cards:
                for policy in (*CONTENDERS, *((OPTIMUM,) if workload == SMALL else ())):
                    yield Case(workload, card_gib, seed, policy)


def result_of(case: Case, costs: Costs) -> dict[str, Any]:  # Any: see the import.
    """Run one case."""
    made = instance(case.workload, case.card_gib, case.seed, costs=costs)
    if case.policy == OPTIMUM:
        return {"cost_ms": optimum_ms(made, costs, nodes_max=NODES_MAX)}
    outcome = World(made, CONTENDERS[case.policy](made, costs), costs=costs).run()
    return {**outcome.data(), "cost_ms": outcome.cost_ms}


def kept_results(path: Path, codes: dict[str, str]) -> dict[Case, dict[str, Any]]:  # Any: see the import.
    """Results of earlier runs that still hold."""
    found: dict[Case, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        entry = json.loads(line)
        case = Case(*entry["case"])
        if codes.get(case.policy) == entry["code"]:
            found[case] = entry["result"]
    return found


def main() -> int:
    """Run what is missing, as long as there is time, and write the page."""
    wording = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=wording)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--small", type=int, default=100, help="instances for the exact search")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--results", type=Path, default=KEPT)
    parser.add_argument("--only", default="", help="run only policies whose name begins so")
    parser.add_argument("--page", type=Path, default=HERE / "policies.md")
    options = parser.parse_args()
    costs = read_costs()
    codes = {policy: code_of(policy) for policy in (*CONTENDERS, OPTIMUM)}
    results = kept_results(options.results, codes)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + options.minutes * 60
    with options.results.open("a", encoding="utf-8") as file:
        for case in cases(options.seeds, options.small):
            if case in results or not case.policy.startswith(options.only):
                continue
            if time.monotonic() > until_s:
                break
            result = results[case] = result_of(case, costs)
            line = {
                "case": [case.workload, case.card_gib, case.seed, case.policy],
                "code": codes[case.policy],
                "result": result,
            }
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
    wanted = set(cases(options.seeds, options.small))
    return report(options.page, {case: result for case, result in results.items() if case in wanted})


if __name__ == "__main__":
    sys.exit(main())
