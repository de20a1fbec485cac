"""Stages of image jobs after they were begun: finished, failed, stopped, lost; and the end of a job.

Owns what becomes of an attempt. How a stage gets onto a worker is `staging.py`, the ladder after failures
`ladder.py`, the order of jobs `core/queue.py` and `core/schedule.py`.
"""

from __future__ import annotations

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.binding import unbind
from tidegate.core.catalog import SizeKey
from tidegate.core.house import Sight
from tidegate.core.image.failure import Attempt, Failure
from tidegate.core.image.job import Job, JobPhase, Run
from tidegate.core.image.ladder import forgiven
from tidegate.core.image.staging import COMPUTE
from tidegate.core.lease import LeasePhase
from tidegate.core.llm.tide import CONTEXT
from tidegate.core.notice import blank_delivered, drifted, made_again
from tidegate.core.queue import enqueue, leave
from tidegate.core.state import Alarm, BindingKind, State
from tidegate.core.supervision import SENT_BY_OTHERS, await_release, terminate
from tidegate.core.worker import Worker


def run_of(state: State, event: ev.StageFact) -> tuple[Job, Run] | None:
    """The run that an event is about, or None when that attempt is over."""
    job = state.jobs.get(event.job)
    if job is None or job.run is None:
        return None
    run = job.run
    same = (run.worker, run.incarnation, run.attempt) == (event.worker, event.incarnation, event.attempt)
    return (job, run) if same else None


def finished(state: State, event: ev.StageFinished) -> None:
    """A stage is done and its checkpoint safe."""
    found = run_of(state, event)
    if found is None:
        return
    job, run = found
    worker, stage = state.workers[run.worker], job.stage
    worker.kills_count = 0
    _learn(state, job, run, event=event)
    _settle(state, worker, run, keeps_component=True)
    job.tried = []
    job.starts_count = 0
    job.steps_kept = 0
    job.told_execution = None
    job.is_resumed = False
    job.stages = job.stages[1:]
    state.tell(job.name, f"{stage} done in {event.load_ms + event.run_ms} ms")
    if not job.stages:
        job.run = None
        worker.job = ""
        end(state, job, JobPhase.DONE)
        return
    _requeue(state, job, finished=True)


def _learn(state: State, job: Job, run: Run, *, event: ev.StageFinished) -> None:
    size: SizeKey = job.size(job.stage)
    # A tape shortens the run: what is left of a stage says nothing about the whole.
    run_ms = None if job.is_resumed else event.run_ms
    state.catalog.learn_stage_ms(size, run.execution, work=job.work, load_ms=event.load_ms, run_ms=run_ms)
    worker = state.workers[run.worker]
    if not worker.card or not run.card_bytes:
        return
    pool = state.ledger.pools[worker.card]
    drift_bytes = event.card_peak_bytes - run.card_bytes
    if drift_bytes <= 0:
        pool.relax_headroom()
        return
    pool.raise_headroom(drift_bytes)
    state.catalog.learn_peak(size, run.execution, card_peak_bytes=event.card_peak_bytes)
    if drift_bytes >= state.policy.drift_notice_bytes:
        subject = f"{job.stage} of {job.model}"
        state.notify(
            drifted(
                subject, worker.card, predicted_bytes=run.card_bytes, observed_bytes=event.card_peak_bytes
            )
        )


def _settle(state: State, worker: Worker, run: Run, *, keeps_component: bool) -> None:
    """After an attempt: what stays loaded is held, what was said to be freed waits to be seen."""
    state.clear_alarm(Alarm.STAGE, worker.name)
    # A failed attempt may not have got as far as making a device context. Where only sums are seen, believing
    # in one would hide as many bytes of somebody else.
    by_sum = bool(worker.card) and state.ledger.pools[worker.card].sight is Sight.PER_CARD
    certain = (run.part, CONTEXT) if keeps_component or not by_sum else (run.part,)
    for lease in state.ledger.of(worker.name):
        if lease.phase not in (LeasePhase.GRANTED, LeasePhase.HELD):
            continue
        if lease.part == COMPUTE or (lease.part == run.part and not keeps_component):
            state.ledger.claim(lease, at_ms=state.now_ms)
        elif lease.part in certain:
            state.ledger.hold(lease, at_ms=state.now_ms)
    if state.ledger.is_releasing(worker.name):
        await_release(state, worker)
    state.observe(worker.card)


def failed(state: State, event: ev.StageFailed) -> None:
    """An attempt failed and the worker lives."""
    found = run_of(state, event)
    if found is None:
        return
    job, run = found
    _settle(state, state.workers[run.worker], run, keeps_component=False)
    _fell(state, job, run, failure=event.failure)


def stopped(state: State, event: ev.StageStopped) -> None:
    """A stage ended early as it was asked to."""
    found = run_of(state, event)
    if found is None:
        return
    job, run = found
    worker = state.workers[run.worker]
    _settle(state, worker, run, keeps_component=True)
    worker.job = ""
    _requeue(state, job)


def checkpoint_lost(state: State, event: ev.CheckpointLost) -> None:
    """What earlier stages had saved is gone: they are run again, unless that happens again and again."""
    found = run_of(state, event)
    if found is None:
        return
    job, run = found
    worker = state.workers[run.worker]
    _settle(state, worker, run, keeps_component=True)
    job.losses_count += 1
    if job.losses_count > state.policy.losses_max:
        _fell(state, job, run, failure=Failure.ENGINE)
        return
    worker.job = ""
    again = tuple(stage for stage in event.stages if stage not in job.stages)
    state.notify(made_again(job.name, again))
    job.stages = (*again, *job.stages)
    job.tried = []
    job.steps_kept = 0
    _requeue(state, job)


def lost(state: State, worker: Worker, *, signal: int | None, hung: bool) -> None:
    """The worker of a job ended: classify, and try again a rung lower; `signal` None: it ended with the
    arbiter.
    """
    job = state.jobs.get(worker.job)
    worker.job = ""
    if job is None or job.run is None or job.run.worker != worker.name:
        return
    if signal is None:
        state.clear_alarm(Alarm.STAGE, worker.name)
        _requeue(state, job)  # Nothing failed; the same stage goes on from its tape.
        return
    job.starts_count += not job.run.incarnation
    if not job.run.incarnation and not hung and job.starts_count <= state.policy.starts_max:
        # It ended before the stage began: that says nothing about how the stage was to run. What takes too
        # long even to start is on a slow machine, and shall be given more time.
        _requeue(state, job)
        return
    failure = Failure.DIED
    if hung:
        failure = Failure.HANG
    elif signal in SENT_BY_OTHERS:
        failure = Failure.KILLED
    if failure is Failure.KILLED and job.run.got_on:
        _go_on(state, job, job.run)
        return
    state.clear_alarm(Alarm.STAGE, worker.name)
    _fell(state, job, job.run, failure=failure)


def got_on(state: State, job: Job, run: Run, *, step: int) -> None:
    """A step of sampling is done and on the tape: nobody who ends the worker now takes it away."""
    if step > job.steps_kept:
        job.steps_kept = step
        run.got_on = True
        state.workers[run.worker].kills_count = 0


def _go_on(state: State, job: Job, run: Run) -> None:
    """Killed from outside while it got on: as often as that happens, the image is done in the end."""
    state.clear_alarm(Alarm.STAGE, run.worker)
    told = f"{Failure.KILLED.text()} after step {job.steps_kept}"
    state.tell(job.name, f"{job.stage} goes on from its tape: {told}")
    job.tried = forgiven(job.tried, run.execution)
    _requeue(state, job)


def _fell(state: State, job: Job, run: Run, *, failure: Failure) -> None:
    worker = state.workers[run.worker]
    state.tell(job.name, f"{job.stage} failed {run.execution.text()}: {failure.text()}")
    if failure is Failure.BLANK and any(attempt.failure is Failure.BLANK for attempt in job.tried):
        state.notify(blank_delivered(job.name))
        job.stages = job.stages[1:]
        job.run = None
        worker.job = ""
        end(state, job, JobPhase.DONE)
        return
    job.tried.append(Attempt(run.execution, failure))
    if failure is Failure.NOT_FINITE:
        job.steps_kept = 0  # The tape goes with it.
    _requeue(state, job)


def _requeue(state: State, job: Job, *, finished: bool = False) -> None:
    """Let it wait for its next turn, unless nobody wants it any more."""
    job.is_resumed = job.is_resumed or (job.phase is JobPhase.DENOISE and not finished)
    job.run = None
    drop_bindings(state, job)
    job.to(JobPhase.QUEUED, state.stories.of(job.name))
    job.waiting_since_ms = state.now_ms
    enqueue(state, job)
    if job.is_cancelled:
        end(state, job, JobPhase.CANCELLED)


def drop_bindings(state: State, job: Job) -> None:
    """What was reserved for a job, looking ahead or waiting, is free for a new plan."""
    for binding in tuple(state.bindings.values()):
        if binding.kind is BindingKind.STAGE and binding.subject == job.name:
            unbind(state, binding)


def abandon(state: State, job: Job, worker: Worker) -> None:
    """The worker is ready, but nobody wants the image any more or its bytes are gone: give the grant back."""
    run = job.run
    assert run is not None, "a granted stage has a run"
    _settle(state, worker, run, keeps_component=False)
    _requeue(state, job)


def hung(state: State, worker: Worker) -> None:
    """The stage alarm rang: no sign of life for too long."""
    state.tell(worker.job or worker.name, f"{worker.name} made no progress past its deadline")
    terminate(state, worker, at_fault=True)


def stop(state: State, job: Job, reason: ef.StopReason) -> None:
    """Ask a running stage to end at its next step, for another or for good."""
    run = job.run
    if run is None or run.is_stopping or not run.incarnation:
        return
    run.is_stopping = True
    state.emit(
        ef.StopStage(
            job=job.name, worker=run.worker, incarnation=run.incarnation, attempt=run.attempt, reason=reason
        )
    )


def cancelled(state: State, event: ev.JobCancelled) -> None:
    """Nobody wants the image any more."""
    job = state.jobs.get(event.job)
    if job is None or job.is_cancelled or job.phase in (JobPhase.DONE, JobPhase.FAILED, JobPhase.CANCELLED):
        return
    job.is_cancelled = True
    if job.run is None:
        end(state, job, JobPhase.CANCELLED)
        return
    run = job.run
    if run.is_stopping or not run.incarnation:
        return  # It ends when it has yielded, or when its worker is ready.
    stop(state, job, ef.StopReason.CANCEL)


def end(
    state: State, job: Job, phase: JobPhase, *, code: str = "", message: str = "", retry_after_ms: int = 0
) -> None:
    """End a job; it is kept until its end was committed."""
    leave(state, job)
    drop_bindings(state, job)
    for worker in state.workers.values():
        if worker.job == job.name:
            worker.job = ""
    job.to(phase, state.stories.of(job.name))
    state.tell(job.name, message or str(phase))
    state.emit(
        ef.FinishJob(
            job=job.name,
            outcome=ef.Outcome(phase.value),
            code=code,
            message=message,
            retry_after_ms=retry_after_ms,
        )
    )
