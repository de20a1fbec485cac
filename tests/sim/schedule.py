"""Schedules: one run of one workload. Safety under faults, then liveness without.

Owns the two phases and the result. A run is a pure function of its workload.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.judge import Violation
from tests.sim.workload import ACTS_MS, Workload
from tests.sim.world import Counts, World

from tidegate.core.faults import Bug
from tidegate.core.house import CardDescriptor, Sight

# Most hangs are noticed after a minute, and quarantines end after another. A decode on the CPU in the
# smallest tiles is expected to be silent for a quarter of an hour, and is waited for eight times as long: one
# such hang, which is all that can be left when the faults are over, and a row of others end in this time.
END_MS = 4 * 3_600_000
STEPS_MAX = 20_000
PROBE = "probe"
PROBES_MAX = 4


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a schedule; `error` is empty when every rule was kept."""

    seed: int
    counts: Counts
    jobs: int
    error: str = ""


def run(workload: Workload) -> Result:
    """Run one schedule to its end and say what broke, if anything did."""
    world = World(workload)
    error = ""
    try:
        drive(world)
    except (Violation, Bug, AssertionError, KeyError, IndexError, ValueError, StopIteration) as broken:
        error = f"{type(broken).__name__}: {broken}"
    return Result(workload.seed, world.counts, len(world.judge.jobs), error)


def drive(world: World) -> None:
    world.later(ACTS_MS + 1, world.calm)
    world.later(ACTS_MS + 2, _nothing)  # So that a world in which nothing is left to happen is probed too.
    probes = 0
    for _ in range(STEPS_MAX):
        if not world.step():
            break
        if world.now_ms > END_MS:
            break
        if world.now_ms > ACTS_MS + 1 and _is_over(world):
            if probes and (_is_granted(world) or probes == PROBES_MAX):
                break
            probes += 1
            _probe(world, probes)
    else:
        raise Violation("it goes round in circles")
    world.judge.all_ended()
    world.judge.must(_is_granted(world), "not every byte came back: a probe was denied")


def _nothing() -> None:
    """Time goes on."""


def _is_over(world: World) -> bool:
    judge = world.judge
    return (
        all(job.finished for job in judge.jobs.values())
        and all(request.ended for request in judge.requests.values())
        and all(answer.value in ("denied", "ended") for answer in judge.answers.values())
    )


def _cards(world: World) -> list[CardDescriptor]:
    return [card for card in world.workload.house.cards if card.sight is not Sight.OWN_LEDGER]


def _is_granted(world: World) -> bool:
    """Whether on every card that can be seen some probe got its bytes."""
    return all(
        any(world.guests.granted(f"{PROBE}/{card.name}/{number}") for number in range(1, PROBES_MAX + 1))
        for card in _cards(world)
    )


def _probe(world: World, number: int) -> None:
    """Every byte returns: a guest that asks for most of an idle card must get it, at once or soon."""
    for card in _cards(world):
        amount_bytes = (card.total_bytes - card.context_bytes) * 6 // 10
        lease = f"{PROBE}/{card.name}/{number}"
        world.guests.ask(lease, card.name, amount_bytes=amount_bytes, hold_ms=100, wait_ms=60_000)
