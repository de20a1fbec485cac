"""What image workers hold: shared once, given back on request, lost work made again, kills forgiven."""

from __future__ import annotations

import pytest
from tests.core.test_arbiter import WEIGHTS, Recorder, chat, house, job
from tests.sim.workload import Act

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.house import CardDescriptor, House, ImageModel
from tidegate.core.lease import LeasePhase
from tidegate.core.notice import NoticeKind
from tidegate.core.quantity import GIB
from tidegate.core.stage import Component, Placement, Stage
from tidegate.core.worker import WorkerPhase

IMAGE = "image/gpu0"


def twins() -> House:
    """Two models of which the second has text encoder and VAE out of the first one's files."""
    owners = {Component.TEXT_ENCODER: "image0", Component.VAE: "image0"}
    return House(
        ram=CardDescriptor(name="ram", total_bytes=32 * GIB),
        cards=(CardDescriptor(name="gpu0", total_bytes=16 * GIB),),
        image_models=(
            ImageModel(name="image0", weights_bytes=WEIGHTS),
            ImageModel(name="image1", weights_bytes=WEIGHTS, owners=owners),
        ),
    )


def held(seen: Recorder) -> list[str]:
    """The components that the image worker holds."""
    leases = seen.world.arbiter.state.ledger.of(IMAGE)
    return sorted(lease.part for lease in leases if "/" in lease.part and lease.phase is LeasePhase.HELD)


def test_a_shared_component_is_charged_once_and_stays_for_the_other_model() -> None:
    other = Act(20_000, "job", "job1", (64, 8, 0, 0), "image1")
    seen = Recorder(twins(), job(0), other).until(60_000)
    assert held(seen) == [
        "image0/diffusion",
        "image0/text_encoder",
        "image0/vae",
        "image1/diffusion",
    ]
    assert seen.notices() == []


def test_what_a_model_holds_is_given_back_on_request_but_not_what_another_uses() -> None:
    other = Act(20_000, "job", "job1", (64, 8, 0, 0), "image1")
    seen = Recorder(twins(), job(0), other, Act(60_000, "unload", "image0")).until(65_000)
    assert held(seen) == ["image0/text_encoder", "image0/vae", "image1/diffusion"]
    assert NoticeKind.RELEASED in seen.notices()
    seen.world._act(Act(0, "unload", "image1"))
    assert held(seen.until(seen.world.now_ms + 10_000)) == []
    seen.world._act(Act(0, "job", "job2", (64, 8, 0, 0), "image0"))
    _told(seen, ev.JobClosed)
    assert held(seen) == ["image0/diffusion", "image0/text_encoder", "image0/vae"], "wanted again, it stays"


def test_a_model_in_use_is_given_back_when_its_job_is_done() -> None:
    seen = Recorder(house(16 * GIB, llms=0), job(0), Act(1_500, "unload", "image0")).until(60_000)
    assert [stage for stage, _, _ in seen.stages()] == [Stage.ENCODE, Stage.DENOISE, Stage.DECODE]
    assert held(seen) == ["image0/diffusion", "image0/text_encoder", "image0/vae"], "the job wanted it after"


def test_work_that_was_saved_and_is_gone_is_made_again_in_words() -> None:
    seen = Recorder(house(16 * GIB, llms=0), job(0))
    run = _running(seen, Stage.DECODE)
    process = seen.world.process_of(run.worker, run.incarnation)
    assert process is not None
    process.busy_with = ""
    seen.world.judge.jobs["job0"].left.insert(0, Stage.DENOISE)
    seen.world.deliver(
        ev.CheckpointLost(
            at_ms=seen.world.now_ms,
            worker=run.worker,
            incarnation=run.incarnation,
            job="job0",
            attempt=run.attempt,
            stages=(Stage.DENOISE,),
        )
    )
    seen.until(seen.world.now_ms + 60_000)
    assert [stage for stage, _, _ in seen.stages()][-2:] == [Stage.DENOISE, Stage.DECODE]
    assert NoticeKind.RETRIED in seen.notices()
    assert [end.outcome for end in seen.effects if isinstance(end, ef.FinishJob)] == [ef.Outcome.DONE]


@pytest.mark.parametrize(("signal", "is_forgiven"), [(9, True), (15, True), (6, False), (11, False)])
def test_a_kill_from_outside_is_no_failure_of_the_worker(signal: int, *, is_forgiven: bool) -> None:
    seen = Recorder(house(16 * GIB, llms=0), job(0))
    run = _running(seen, Stage.DENOISE)
    process = seen.world.process_of(run.worker, run.incarnation)
    assert process is not None
    seen.world.die(process, signal=signal)
    worker = seen.world.arbiter.state.workers[IMAGE]
    _told(seen, ev.WorkerExited)
    assert (worker.failures_count == 0) is is_forgiven
    assert (worker.phase is not WorkerPhase.RESTING) is is_forgiven


def test_one_that_is_killed_whenever_it_begins_rests_in_the_end() -> None:
    seen = Recorder(house(16 * GIB, llms=0), job(0))
    state = seen.world.arbiter.state
    worker = state.workers[IMAGE]
    _running(seen, Stage.DENOISE)
    worker.kills_count = state.policy.kills_max
    process = seen.world.process_of(IMAGE, worker.incarnation)
    assert process is not None
    seen.world.die(process, signal=9)
    _told(seen, ev.WorkerExited)
    assert worker.phase is WorkerPhase.RESTING
    seen.until(seen.world.now_ms + 60_000)
    assert worker.kills_count == 0, "a finished stage clears the record"


def _killed(seen: Recorder, stage: Stage, *, at_step: int = 0) -> None:
    """Somebody kills the worker of the next run of a stage: as soon as it runs, or after this step."""
    run = _running(seen, stage)
    while at_step:
        assert seen.world.step()
        if isinstance(heard := seen.world.log[-1], ev.StageProgressed) and heard.step == at_step:
            break
    process = seen.world.process_of(run.worker, run.incarnation)
    assert process is not None
    seen.world.die(process, signal=9, by_others=True)
    _told(seen, ev.WorkerExited)


def test_an_image_whose_worker_is_killed_again_and_again_is_done_in_the_end() -> None:
    seen = Recorder(house(16 * GIB, llms=0), job(0))
    for stage, count in ((Stage.ENCODE, 9), (Stage.DENOISE, 12), (Stage.DECODE, 20)):
        for _ in range(count):
            _killed(seen, stage)
    seen.until(seen.world.now_ms + 600_000)
    assert [end.outcome for end in seen.effects if isinstance(end, ef.FinishJob)] == [ef.Outcome.DONE]
    placements = [placement for stage, placement, _ in seen.stages() if stage is Stage.DENOISE]
    assert placements[:3] == [Placement.CARD, Placement.CARD, Placement.STREAM], "two kills, one rung lower"


def test_a_kill_after_a_step_that_nobody_had_done_before_costs_no_rung() -> None:
    seen = Recorder(house(16 * GIB, llms=0), job(0))
    _killed(seen, Stage.DENOISE)
    for step in (4, 8):
        _killed(seen, Stage.DENOISE, at_step=step)
    state = seen.world.arbiter.state
    assert state.jobs["job0"].tried == [] and state.workers[IMAGE].kills_count == 1
    assert any("goes on from its tape" in line for line in seen.world.arbiter.story("job0"))
    # Nothing new any more, so this one counts.
    _killed(seen, Stage.DENOISE, at_step=8)
    assert len(state.jobs["job0"].tried) == 1
    seen.until(seen.world.now_ms + 60_000)
    assert [place for stage, place, _ in seen.stages() if stage is Stage.DENOISE] == [Placement.CARD] * 5
    assert [end.outcome for end in seen.effects if isinstance(end, ef.FinishJob)] == [ef.Outcome.DONE]


def test_an_answer_clears_the_record_of_those_who_gave_it() -> None:
    seen = Recorder(house(16 * GIB), chat(0, "a"))
    workers = seen.world.arbiter.state.workers
    for name in ("front", "llm/llm0"):
        workers[name].kills_count = 3
    seen.until(20_000)
    assert [end.outcome for end in seen.effects if isinstance(end, ef.FinishChat)] == [ef.Outcome.DONE]
    assert [workers[name].kills_count for name in ("front", "llm/llm0")] == [0, 0]


def _running(seen: Recorder, stage: Stage) -> ef.RunStage:
    """Let time pass until this stage runs, in a process that lives."""
    while seen.world.step():
        runs = [effect for effect in seen.effects if isinstance(effect, ef.RunStage)]
        if runs and runs[-1].stage is stage and seen.world.process_of(IMAGE, runs[-1].incarnation):
            return runs[-1]
    raise AssertionError(f"{stage} never ran")


def _told(seen: Recorder, kind: type[ev.Event]) -> None:
    """Let time pass until the arbiter hears of this."""
    while not isinstance(seen.world.log[-1], kind):
        assert seen.world.step()
