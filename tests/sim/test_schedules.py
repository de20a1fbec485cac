"""Ten thousand short schedules, each with a fault and an eviction, and what they must keep to."""

from __future__ import annotations

import statistics

import pytest
from tests.sim.fleet import run_many
from tests.sim.judge import CHAT_WAIT_MAX_MS, RequestRecord, Violation
from tests.sim.schedule import drive, run
from tests.sim.shrink import shrunk
from tests.sim.workload import calm, workload
from tests.sim.world import World

SCHEDULES = 10_000
# Some four in five seeds have both a fault and an eviction; the others do not count.
SEEDS = 12_600


@pytest.mark.slow
@pytest.mark.leaves("the resource tracker of multiprocessing stays as long as we do", "children", "fds")
def test_ten_thousand_schedules_break_no_rule(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_many(1, SEEDS, processes=2)
    with capsys.disabled():
        print(f"\n{found.text()}")
    told = "\n".join(f"make sim FROM={one.seed} SEEDS=1   # {one.error}" for one in found.failed[:5])
    assert not found.failed, told
    assert len(found.counted) >= SCHEDULES
    assert statistics.median(result.counts.events for result in found.counted) <= 60


def test_where_nothing_fails_nobody_waits_long() -> None:
    """The judge holds chats to their bound in worlds without faults; here it is seen to look."""
    waits = []
    for seed in range(1, 61):
        world = World(calm(workload(seed)))
        drive(world)
        waits.append(world.judge.longest_wait_ms)
    assert max(waits) <= CHAT_WAIT_MAX_MS
    assert statistics.median(waits) <= 3_000


def test_a_chat_that_waited_too_long_is_complained_about() -> None:
    judge = World(calm(workload(1))).judge
    judge.requests["late"] = RequestRecord("llm0", 0, 100)
    with pytest.raises(Violation, match="waited"):
        judge.chat_begins("late", at_ms=CHAT_WAIT_MAX_MS + 1)


def test_a_seed_is_one_world() -> None:
    for seed in (3, 14, 159):
        worlds = [World(workload(seed)) for _ in range(2)]
        for world in worlds:
            while world.now_ms < 60_000 and world.step():
                pass
        assert worlds[0].log == worlds[1].log


def test_a_restored_arbiter_goes_on_alike() -> None:
    """Seeds with a restart go through a snapshot as JSON; here one is compared field by field."""
    world = World(workload(42))
    while world.now_ms < 8_000 and world.step():
        pass
    restored = type(world.arbiter).restored(world.arbiter.snapshot())
    assert restored.state == world.arbiter.state


def test_shrinking_keeps_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that complains about every second chat shrinks to a schedule of little more than a chat."""
    from tests.sim.judge import Judge

    def complain(self: Judge, effect: object, *, may_fail: bool) -> None:
        raise Violation("a chat ended")

    monkeypatch.setattr(Judge, "request_ended", complain)
    seed = next(seed for seed in range(1, 100) if run(workload(seed)).error)
    assert len(shrunk(workload(seed)).acts) == 1
