"""Supervision: starting, draining and ending workers, one step firmer each time they do not obey.

    ask -> re-initialise -> terminate -> kill

Owns these steps, back-off and quarantine. Which bytes are asked back and why is decided by `yielding.py`;
what the end of a worker means for a job or a model is told by `image/stages.py` and `llm/tide.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.core.effects import (
    KillWorker,
    ReinitialiseWorker,
    ReleaseComponents,
    StartWorker,
    TerminateWorker,
)
from tidegate.core.events import WorkerExited
from tidegate.core.house import RAM
from tidegate.core.lease import Lease, LeasePhase
from tidegate.core.notice import escalated, quarantined
from tidegate.core.state import PROCESS, Alarm, State
from tidegate.core.worker import DrainStep, Worker, WorkerKind, WorkerPhase

SENT_BY_OTHERS = (9, 15)  # A crash of its own ends a process by another signal, or by its status.


def may_start(worker: Worker) -> bool:
    """Whether it is there, or could be started now."""
    return worker.phase in (WorkerPhase.ABSENT, WorkerPhase.STARTING, WorkerPhase.READY)


def start(state: State, worker: Worker, *, process: Lease | None = None) -> None:
    """Start a process; its private memory is charged to RAM, by this reservation or by a standing lease."""
    worker.to(WorkerPhase.STARTING, state.stories.of(worker.name))
    worker.incarnation += 1
    worker.drain = DrainStep.NONE
    worker.is_at_fault = False
    if process is not None:
        state.ledger.grant(process, incarnation=worker.incarnation, at_ms=state.now_ms)
    state.set_alarm(Alarm.START, worker.name, in_ms=state.policy.start_wait_max_ms)
    state.tell(worker.name, f"starting (incarnation {worker.incarnation})")
    state.emit(
        StartWorker(
            worker=worker.name,
            incarnation=worker.incarnation,
            kind=worker.kind,
            card=worker.card,
            model=worker.model,
        )
    )


def ensure(state: State, worker: Worker) -> None:
    """Start a worker that has a standing lease, unless somebody foreign took so much RAM that even that is
    gone.
    """
    if worker.phase is WorkerPhase.ABSENT and state.ledger.pools[RAM].unclaimed_bytes >= 0:
        start(state, worker)


def ready(state: State, worker: Worker) -> None:
    """The process is up."""
    worker.to(WorkerPhase.READY, state.stories.of(worker.name))
    state.clear_alarm(Alarm.START, worker.name)
    for lease in state.ledger.of(worker.name):
        if lease.part == PROCESS:
            state.ledger.hold(lease, at_ms=state.now_ms)


def release(state: State, worker: Worker, *, leases: Iterable[Lease]) -> None:
    """Ask an image worker for components; it has a while to free them, and to be seen to have."""
    asked = [lease for lease in leases if lease.phase in (LeasePhase.GRANTED, LeasePhase.HELD)]
    if not asked:
        return
    for lease in asked:
        state.ledger.ask(lease)
    await_release(state, worker)
    parts = tuple(lease.part for lease in asked)
    state.tell(worker.name, f"asked to release {', '.join(parts)}")
    state.emit(ReleaseComponents(worker=worker.name, incarnation=worker.incarnation, parts=parts))


def await_release(state: State, worker: Worker) -> None:
    """Give the worker a while until what it frees must have been seen."""
    if worker.drain is DrainStep.NONE:
        worker.drain = DrainStep.ASKED
        state.set_alarm(Alarm.RELEASE, worker.name, in_ms=state.policy.release_wait_max_ms)


def drained(state: State, worker: Worker) -> None:
    """Nothing is being asked back from this worker any more."""
    worker.drain = DrainStep.NONE
    state.clear_alarm(Alarm.RELEASE, worker.name)


def release_overdue(state: State, worker: Worker) -> None:
    """Bytes asked back were not seen in time: count a little as residue, else go one step firmer."""
    if worker.phase is not WorkerPhase.READY:
        return
    kept_bytes = state.ledger.settle_residue(
        worker.name, residue_max_bytes=state.policy.residue_max_bytes, at_ms=state.now_ms
    )
    if kept_bytes and not state.ledger.is_releasing(worker.name):
        drained(state, worker)
        state.tell(worker.name, f"keeps a residue of {kept_bytes} bytes after releasing")
        return
    if worker.drain is DrainStep.ASKED and worker.kind is WorkerKind.IMAGE:
        worker.drain = DrainStep.REINITIALISED
        for lease in state.ledger.of(worker.name):
            if lease.part != PROCESS and lease.phase in (LeasePhase.GRANTED, LeasePhase.HELD):
                state.ledger.ask(lease)
        state.set_alarm(Alarm.RELEASE, worker.name, in_ms=state.policy.release_wait_max_ms)
        state.notify(escalated(worker.name, "re-initialised"))
        state.emit(ReinitialiseWorker(worker=worker.name, incarnation=worker.incarnation))
        return
    state.notify(escalated(worker.name, "ended"))
    terminate(state, worker)


def terminate(state: State, worker: Worker, *, at_fault: bool = False) -> None:
    """Ask the process to end; its leases end when it has."""
    if worker.phase not in (WorkerPhase.STARTING, WorkerPhase.READY):
        return
    worker.to(WorkerPhase.STOPPING, state.stories.of(worker.name))
    worker.is_at_fault = at_fault
    state.clear_alarm(Alarm.START, worker.name)
    state.clear_alarm(Alarm.RELEASE, worker.name)
    state.set_alarm(Alarm.STOP, worker.name, in_ms=state.policy.terminate_wait_max_ms)
    state.tell(worker.name, "asked to end")
    state.emit(TerminateWorker(worker=worker.name, incarnation=worker.incarnation))


def stop_overdue(state: State, worker: Worker) -> None:
    """It did not end when asked: kill it, and again as long as it is not seen to be dead."""
    if worker.phase is WorkerPhase.STOPPING:
        worker.to(WorkerPhase.KILLING, state.stories.of(worker.name))
        state.notify(escalated(worker.name, "killed"))
    if worker.phase is WorkerPhase.KILLING:
        state.set_alarm(Alarm.STOP, worker.name, in_ms=state.policy.kill_wait_max_ms)
        state.emit(KillWorker(worker=worker.name, incarnation=worker.incarnation))


def exited(state: State, worker: Worker, event: WorkerExited | None) -> bool:
    """The process is gone (None: with the arbiter's own); a failure costs a rest before the next start.

    True when somebody else ended it, which is no failure of worker or model.
    """
    unasked = worker.phase in (WorkerPhase.STARTING, WorkerPhase.READY)
    was_killed = event is not None and unasked and not worker.is_at_fault and event.signal in SENT_BY_OTHERS
    if was_killed:
        worker.kills_count += 1
        was_killed = worker.kills_count <= state.policy.kills_max
    failed = event is not None and (worker.is_at_fault or unasked) and not was_killed
    state.ledger.gone(worker.name)
    drained(state, worker)
    state.clear_alarm(Alarm.START, worker.name)
    state.clear_alarm(Alarm.STOP, worker.name)
    worker.is_at_fault = False
    state.tell(
        worker.name, "ended" if event is None or not event.signal else f"ended by signal {event.signal}"
    )
    if worker.card and state.ledger.pools[worker.card].is_stale:
        state.observe(worker.card)
    if not failed:
        worker.to(WorkerPhase.ABSENT, state.stories.of(worker.name))
        return was_killed
    worker.to(WorkerPhase.RESTING, state.stories.of(worker.name))
    _rest(state, worker)
    return False


def _rest(state: State, worker: Worker) -> None:
    policy = state.policy
    if state.now_ms - worker.failed_ms > policy.forgive_ms:
        worker.failures_count = 0
    worker.failures_count += 1
    worker.failed_ms = state.now_ms
    rest_ms = min(policy.backoff_max_ms, policy.backoff_ms << min(worker.failures_count - 1, 10))
    if worker.failures_count >= policy.failures_max:
        rest_ms = policy.quarantine_ms
        worker.failures_count = 0
        state.notify(quarantined(worker.name, rest_ms=rest_ms))
    state.set_alarm(Alarm.REST, worker.name, in_ms=rest_ms)


def rested(worker: Worker) -> None:
    """Its back-off or quarantine is over."""
    if worker.phase is WorkerPhase.RESTING:
        worker.to(WorkerPhase.ABSENT)
