"""Choosing: from a question about one stage to a plan. The planner's pipeline in one screen.

    enumerate (option x who yields) -> filter (bytes, ladder) -> score (class, then milliseconds) -> cheapest

Owns that pipeline and its bound. To reserve and to bind what was chosen is the arbiter's part.
"""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.core.planner.filters import Candidate, Rejection, keeps_held, needed_bytes, rejection_of
from tidegate.core.planner.option import StageOption
from tidegate.core.planner.plan import Plan, Refusal, Scored
from tidegate.core.planner.question import LONG_IDLE_MS, Concession, StageQuestion, YieldClass
from tidegate.core.planner.scores import score_of


def choose(question: StageQuestion) -> Plan | Refusal:
    """Answer the question; a Refusal says that nothing fits, whoever yields."""
    accepted: list[Scored] = []
    rejected: list[Rejection] = []
    considered_count = skipped_count = 0
    ordered = yield_ordered(question.concessions, question.yield_order)
    for order, option in enumerate(question.options):
        for releases in _release_sets(question, option, ordered=ordered):
            if considered_count >= question.candidates_max:
                skipped_count += 1
                continue
            considered_count += 1
            candidate = Candidate(option, releases, order)
            if rejection := rejection_of(question, candidate):
                rejected.append(rejection)
            else:
                accepted.append(Scored(candidate, score_of(question, candidate)))
    if not accepted:
        return Refusal(
            stage=question.stage,
            subject=question.subject,
            card=question.card,
            ram=question.ram,
            rejected=tuple(rejected),
        )
    accepted.sort(key=lambda scored: scored.score)
    chosen, *runners_up = accepted
    return Plan(
        stage=question.stage,
        subject=question.subject,
        card=question.card,
        ram=question.ram,
        chosen=chosen,
        runners_up=tuple(runners_up),
        rejected=tuple(rejected),
        drops_held=question.held is not None and not keeps_held(question, chosen.candidate.option),
        skipped_count=skipped_count,
    )


def plan_stage(question: StageQuestion) -> Plan:
    """Answer the question or raise the one clear CapacityError with numbers."""
    match choose(question):
        case Plan() as plan:
            return plan
        case Refusal() as refusal:
            raise refusal.fault()


def yield_ordered(
    concessions: tuple[Concession, ...], yield_order: tuple[YieldClass, ...]
) -> tuple[Concession, ...]:
    """Order those who may yield: class, long idle first, then expected price per byte, oldest first."""
    rank = {yields: index for index, yields in enumerate(yield_order)}

    def key(release: Concession) -> tuple[int, bool, int, int, str]:
        cost = (release.free_ms + release.expected_return_ms) * 1_000_000
        price = cost // max(1, release.card_bytes + abs(release.ram_bytes))
        return (rank[release.yields], release.idle_ms < LONG_IDLE_MS, price, -release.idle_ms, release.tenant)

    return tuple(sorted(concessions, key=key))


def _release_sets(
    question: StageQuestion, option: StageOption, *, ordered: tuple[Concession, ...]
) -> Iterator[tuple[Concession, ...]]:
    """Yield up to three sets of releases: none, the soft ones in yield order, and the one that alone
    suffices.

    When even all of them do not suffice, yield all of them, so that the refusal can name the largest amount.
    """
    card_short, ram_short = needed_bytes(question, option)
    footprint = option.footprint
    card_short = card_short if footprint.card_bytes else 0
    ram_short = ram_short if footprint.ram_bytes else 0
    if card_short <= 0 and ram_short <= 0:
        yield ()
        return
    finished = tuple(release for release in ordered if release.yields is YieldClass.OWN_FINISHED)
    taken: list[Concession] = []
    for release in ordered:
        if _covers(taken, card_short=card_short, ram_short=ram_short):
            break
        if (card_short > 0 and release.card_bytes > 0) or (ram_short > 0 and release.ram_bytes > 0):
            taken.append(release)
    trimmed = _trimmed(taken, card_short=card_short, ram_short=ram_short)
    yield trimmed
    for release in ordered:
        # A tenant with `after` does not go alone; the ordered set above holds its predecessor too.
        alone = (release,) if release in finished else (*finished, release)
        if not release.after and _covers(alone, card_short=card_short, ram_short=ram_short):
            alone = _trimmed(list(alone), card_short=card_short, ram_short=ram_short)
            if alone != trimmed:
                yield alone
            return


def _covers(taken: list[Concession] | tuple[Concession, ...], *, card_short: int, ram_short: int) -> bool:
    card_freed = sum(release.card_bytes for release in taken)
    ram_freed = sum(release.ram_bytes for release in taken)
    return card_freed >= card_short and (ram_short <= 0 or ram_freed >= ram_short)


def _trimmed(taken: list[Concession], *, card_short: int, ram_short: int) -> tuple[Concession, ...]:
    """Drop what turned out not to be needed, the dearest class first, never one that another stands upon."""
    if not _covers(taken, card_short=card_short, ram_short=ram_short):
        return tuple(taken)
    kept = list(taken)
    for release in reversed(taken):
        needed_by_other = any(other.after == release.tenant for other in kept)
        rest = [other for other in kept if other is not release]
        if not needed_by_other and _covers(rest, card_short=card_short, ram_short=ram_short):
            kept = rest
    return tuple(kept)
