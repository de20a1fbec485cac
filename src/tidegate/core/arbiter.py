"""The arbiter: the one writer. Events come in, effects go out, and nothing happens in between that is not
told.

    handle(event):  time -> fence by incarnation -> apply -> alarms that rang -> schedule -> next wake-up

Owns the dispatch of events. It decides nothing itself: see `schedule.py` for the order of decisions. To build
one: `Arbiter(house, policy)`; to save and load one: `snapshot()` and `Arbiter.restored(data)`.
"""

from __future__ import annotations

from typing import assert_never

from tidegate.core import events as ev
from tidegate.core import negotiation, prediction, supervision
from tidegate.core.binding import is_overdrawn
from tidegate.core.effects import Effect, FinishJob, Outcome, WakeAt
from tidegate.core.eta import eta_ms
from tidegate.core.fence import is_stale
from tidegate.core.foresight import look_ahead
from tidegate.core.house import House
from tidegate.core.image import stages, staging
from tidegate.core.image.job import ENDED, Job
from tidegate.core.invariants import check_cheap
from tidegate.core.llm import service, tide, wish
from tidegate.core.llm.level import Tide
from tidegate.core.policy import Policy
from tidegate.core.queue import enqueue
from tidegate.core.schedule import replan, schedule
from tidegate.core.snapshot import packed, unpacked
from tidegate.core.state import Alarm, State, fresh_state
from tidegate.core.worker import Worker, WorkerKind, WorkerPhase

# These facts alone make nothing possible that was not possible before.
_QUIET = (ev.ChatProgressed, ev.StageProgressed, ev.Told, ev.JobClosed)


class Arbiter:
    """Decides about card and RAM; pure, deterministic, one event at a time."""

    def __init__(self, house: House, policy: Policy | None = None) -> None:
        self.state = fresh_state(house, policy or Policy())

    def handle(self, event: ev.Event) -> tuple[Effect, ...]:
        """Take in one fact and answer with what shall be done, in order."""
        state = self.state
        state.now_ms = max(state.now_ms, event.at_ms)
        state.is_dirty = not isinstance(event, _QUIET)
        if is_stale(state, event):
            state.stale_count += 1
            state.is_dirty = False
        else:
            _apply(state, event)
        _ring_alarms(state)
        if state.is_dirty:
            schedule(state)
        _ask_to_wake(state)
        check_cheap(state)
        effects, state.outbox = tuple(state.outbox), []
        return effects

    def story(self, subject: str) -> tuple[str, ...]:
        """What happened to a job, worker, model, request or guest."""
        return self.state.stories.of(subject)

    def eta_ms(self, job: str) -> int | None:
        """Milliseconds until a job will be done, or None while that is unknown."""
        return eta_ms(self.state, job)

    def inherit(self, other: Arbiter) -> None:
        """Know what another arbiter has measured on the same cards."""
        if self.state.house.cards == other.state.house.cards:
            self.state.catalog.inherit(other.state.catalog)

    def snapshot(self) -> dict[str, object]:
        """Everything it knows, as plain data."""
        data: dict[str, object] = packed(self.state)
        return data

    @classmethod
    def restored(cls, data: dict[str, object]) -> Arbiter:
        """Build an arbiter that goes on where the snapshot was taken."""
        arbiter = cls.__new__(cls)
        state = unpacked(data)
        assert isinstance(state, State), "a snapshot holds one State"
        arbiter.state = state
        return arbiter


def _apply(state: State, event: ev.Event) -> None:
    match event:
        case ev.Woke() | ev.Told() | ev.Restarted() | ev.PoolObserved() | ev.JobClosed():
            _apply_house(state, event)
        case ev.WorkerReady() | ev.WorkerExited() | ev.ComponentsReleased() | ev.Reinitialised():
            _apply_worker(state, event)
        case ev.FootprintPredicted():
            prediction.predicted(state, event)
        case ev.LlmPredicted():
            prediction.llm_predicted(state, event)
        case ev.PredictionFailed():
            prediction.failed(state, event)
        case ev.JobSubmitted():
            _submit(state, event)
        case ev.JobCancelled():
            stages.cancelled(state, event)
        case ev.StageProgressed():
            look_ahead(state, event)
        case ev.StageFinished():
            stages.finished(state, event)
        case ev.StageFailed():
            stages.failed(state, event)
        case ev.StageStopped():
            stages.stopped(state, event)
        case ev.CheckpointLost():
            stages.checkpoint_lost(state, event)
        case ev.ModelUnwanted():
            if event.model not in state.unwanted:
                state.unwanted.append(event.model)
        case ev.GuestAsked():
            negotiation.asked(state, event)
        case ev.GuestRenewed():
            negotiation.renewed(state, event)
        case ev.GuestReleased():
            negotiation.released(state, event.lease)
        case _:
            _apply_llm(state, event)


def _apply_llm(
    state: State,
    event: ev.ChatSubmitted
    | ev.ChatCancelled
    | ev.ChatProgressed
    | ev.ChatFinished
    | ev.ChatFailed
    | ev.LevelReached
    | ev.LevelFailed
    | ev.LevelWished
    | ev.IntentHeard,
) -> None:
    match event:
        case ev.ChatSubmitted():
            service.submitted(state, event)
        case ev.ChatCancelled():
            service.cancelled(state, event)
        case ev.ChatProgressed():
            service.progressed(state, event)
        case ev.ChatFinished():
            service.finished(state, event)
        case ev.ChatFailed():
            service.failed(state, event)
        case ev.LevelReached():
            tide.level_reached(state, event)
        case ev.LevelFailed():
            tide.level_failed(state, event)
        case ev.LevelWished():
            wish.wished(state, event)
        case ev.IntentHeard():
            service.intended(state, event)
        case _:
            assert_never(event)


def _apply_house(
    state: State, event: ev.Woke | ev.Told | ev.Restarted | ev.PoolObserved | ev.JobClosed
) -> None:
    match event:
        case ev.Woke():
            state.wake_ms = -1
        case ev.Told():
            state.told_sequence = max(state.told_sequence, event.sequence)
        case ev.Restarted():
            for worker in state.workers.values():
                if worker.is_alive:
                    _lose(state, worker, None)
            state.wake_ms = -1
            for pool in state.ledger.pools.values():
                pool.taken_ms = -1
            state.observe(*(card.name for card in state.house.cards))
        case ev.PoolObserved():
            for holder in state.ledger.observe(event):
                worker_ = state.workers.get(holder)
                if worker_ is not None and not state.ledger.is_releasing(holder):
                    supervision.drained(state, worker_)
        case ev.JobClosed():
            job = state.jobs.get(event.job)
            if job is not None and job.phase in ENDED:
                del state.jobs[event.job]
        case _:
            assert_never(event)


def _apply_worker(
    state: State, event: ev.WorkerReady | ev.WorkerExited | ev.ComponentsReleased | ev.Reinitialised
) -> None:
    worker = state.workers[event.worker]
    match event:
        case ev.WorkerReady():
            if worker.phase is WorkerPhase.STARTING:
                supervision.ready(state, worker)
                _worker_ready(state, worker)
        case ev.WorkerExited():
            _lose(state, worker, event)
        case ev.ComponentsReleased():
            _claimed(state, worker, parts=event.parts)
        case ev.Reinitialised():
            _claimed(state, worker, parts=())
        case _:
            assert_never(event)


def _claimed(state: State, worker: Worker, *, parts: tuple[str, ...]) -> None:
    """A worker says it freed these parts, or everything; from now on a sample can prove it."""
    for lease in state.ledger.of(worker.name):
        asked = lease.phase.value == "releasing" and lease.claimed_ms < 0
        if asked and (not parts or lease.part in parts):
            state.ledger.claim(lease, at_ms=state.now_ms)
    if not state.ledger.is_releasing(worker.name):
        supervision.drained(state, worker)
    state.observe(worker.card)


def _worker_ready(state: State, worker: Worker) -> None:
    match worker.kind:
        case WorkerKind.IMAGE:
            job = state.jobs.get(worker.job)
            if job is None or job.run is None:
                return
            if job.is_cancelled or is_overdrawn(state, worker):
                stages.abandon(state, job, worker)
            else:
                staging.run_stage(state, job, worker)
        case WorkerKind.LLM:
            model = state.models[worker.model]
            if model.tide is not Tide.RISING:
                return
            if is_overdrawn(state, worker):
                supervision.terminate(state, worker)
            else:
                tide.set_level(state, model)
        case WorkerKind.PREDICTOR:
            prediction.predictor_ready(state)
        case WorkerKind.FRONT:
            # Models are served when scheduling looks at them; whoever asks first shall not wait for figures.
            for name in state.models:
                if name not in state.catalog.llms:
                    prediction.want_llm(state, name)
        case _:
            assert_never(worker.kind)


def _lose(state: State, worker: Worker, event: ev.WorkerExited | None) -> None:
    """A process is gone, by its own fault or as asked; None: together with the arbiter's."""
    hung, asked = worker.is_at_fault, worker.phase in (WorkerPhase.STOPPING, WorkerPhase.KILLING)
    was_killed = supervision.exited(state, worker, event)
    for binding in tuple(state.bindings.values()):
        if binding.worker == worker.name:
            replan(state, binding, why="the worker that it was planned for ended")
    match worker.kind:
        case WorkerKind.IMAGE:
            stages.lost(state, worker, signal=None if event is None else event.signal, hung=hung)
        case WorkerKind.LLM:
            failed = event is not None and (hung or not asked) and not was_killed
            tide.lost(state, state.models[worker.model], failed=failed)
        case WorkerKind.PREDICTOR:
            prediction.predictor_lost(state, was_killed=was_killed)
        case WorkerKind.FRONT:
            for model in state.models.values():
                _lose_front(state, model.name)
        case _:
            assert_never(worker.kind)


def _lose_front(state: State, model: str) -> None:
    """Conversations pause; the journal has their history, so they are evaluated again when a front is
    back.
    """
    known = state.models[model]
    if tide.suspend_running(state, known):
        supervision.terminate(state, tide.worker_of(state, known))


def _submit(state: State, event: ev.JobSubmitted) -> None:
    if event.job in state.jobs:
        return  # Ids are idempotent: the same job was sent twice.
    known = any(model.name == event.model for model in state.house.image_models)
    waiting = sum(job.phase not in ENDED for job in state.jobs.values())
    if not known or waiting >= state.policy.jobs_max:
        code, message = ("busy", "Too many images are waiting.")
        if not known:
            code, message = ("unknown_model", f"There is no image model {event.model}.")
        retry_ms = state.policy.chat_wait_max_ms if known else 0
        state.emit(
            FinishJob(
                job=event.job, outcome=Outcome.FAILED, code=code, message=message, retry_after_ms=retry_ms
            )
        )
        return
    job = Job(
        name=event.job,
        model=event.model,
        latent_height=event.latent_height,
        latent_width=event.latent_width,
        steps_count=event.steps_count,
        stages=event.stages,
        priority=event.priority,
        submitted_ms=state.now_ms,
        waiting_since_ms=state.now_ms,
        due_ms=state.now_ms - event.priority * state.policy.ageing_ms,
    )
    assert job.stages, "a job has stages to run"
    state.jobs[job.name] = job
    state.tell(job.name, f"accepted, {len(job.stages)} stages to run with {job.model}")
    enqueue(state, job)
    prediction.plan_ahead(state, job)


def _ring_alarms(state: State) -> None:
    """Act on every alarm whose time has come, earliest first."""
    due = sorted((at_ms, name) for name, at_ms in state.alarms.items() if at_ms <= state.now_ms)
    for at_ms, name in due:
        if state.alarms.get(name) != at_ms:
            continue  # An alarm that rang before has changed or cleared this one.
        del state.alarms[name]
        kind, _, subject = name.partition(":")
        state.is_dirty = True
        _ring(state, Alarm(kind), subject)


def _ring(state: State, alarm: Alarm, subject: str) -> None:
    match alarm:
        case Alarm.START | Alarm.LEVEL:
            supervision.terminate(state, state.workers[subject], at_fault=True)
        case Alarm.STOP:
            supervision.stop_overdue(state, state.workers[subject])
        case Alarm.RELEASE:
            supervision.release_overdue(state, state.workers[subject])
        case Alarm.REST:
            supervision.rested(state.workers[subject])
        case Alarm.STAGE:
            stages.hung(state, state.workers[subject])
        case Alarm.CHAT:
            service.silent(state, state.models[subject])
        case Alarm.PREDICTION:
            prediction.overdue(state)
        case Alarm.BINDING:
            if (binding := state.bindings.get(subject)) is not None:
                replan(state, binding, why="its bytes did not come in time")
        case Alarm.GUEST:
            negotiation.alarm_rang(state, subject)
        case Alarm.TEND:
            pass  # Scheduling, which follows, tends.
        case _:
            assert_never(alarm)


def _ask_to_wake(state: State) -> None:
    if not state.alarms:
        return
    next_ms = min(state.alarms.values())
    if state.wake_ms < 0 or next_ms < state.wake_ms:
        state.wake_ms = next_ms
        state.emit(WakeAt(at_ms=next_ms))
