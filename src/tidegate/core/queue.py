"""The queue: who is next. Waiting jobs stand by due time, language models and guests are put among them.

Owns the order. Due time = waiting since, minus a bonus for priority (ageing makes waiting worth as much as
priority in the end), minus a bonus for a job whose model is loaded (batch before swapping, within a bound,
where it is not the longer one). A
chat that has waited past its bound is overdue and comes first, and so does one that is worth it
(`llm/urgency.py`).
"""

from __future__ import annotations

import enum
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from tidegate.core.guest import GuestPhase
from tidegate.core.image.job import Job
from tidegate.core.lease import LeasePhase
from tidegate.core.llm.level import HELD_DOWN, Tide
from tidegate.core.llm.model import Model
from tidegate.core.llm.request import WAITING
from tidegate.core.llm.urgency import goes_first
from tidegate.core.stage import Component
from tidegate.core.state import State
from tidegate.core.worker import WorkerKind


class DemandKind(enum.IntEnum):
    """Whose turn it is; the order breaks ties."""

    RISE = 0
    JOB = 1
    GUEST = 2


@dataclass(frozen=True, slots=True, order=True)
class Demand:
    """Somebody who waits for bytes; fields stand in the order of comparison."""

    is_patient: bool
    due_ms: int
    kind: DemandKind
    subject: str
    since_ms: int


def enqueue(state: State, job: Job) -> None:
    """Put a job among the waiting."""
    insort(state.queue, job.name, key=lambda name: _place(state.jobs[name]))


def leave(state: State, job: Job) -> None:
    """Take a job from among the waiting."""
    if job.name in state.queue:
        state.queue.remove(job.name)


def _place(job: Job) -> tuple[int, str]:
    return job.due_ms, job.name


def demands(state: State) -> list[Demand]:
    """Everybody who waits for bytes, the next one first; of the jobs only the first few."""
    found = [*_job_demands(state), *_model_demands(state), *_guest_demands(state)]
    found.sort()
    return found


def _job_demands(state: State) -> Iterator[Demand]:
    if not state.queue:
        return
    loaded = {
        lease.part.partition("/")[0]
        for worker in state.workers.values()
        if worker.kind is WorkerKind.IMAGE
        for lease in state.ledger.of(worker.name)
        if "/" in lease.part and lease.phase is LeasePhase.HELD
    }
    for name in state.queue[: state.policy.window_count]:
        job = state.jobs[name]
        if not _is_short(state, job):
            # Nor does a later one of its model go before it: that would save no loading.
            loaded.discard(job.model)
        bonus_ms = state.policy.affinity_ms if job.model in loaded else 0
        yield Demand(True, job.due_ms - bonus_ms, DemandKind.JOB, name, job.waiting_since_ms)


def _is_short(state: State, job: Job) -> bool:
    """Whether it takes hardly longer than the one that is first by due time: then batching costs nobody."""
    return _amount(state, job) * 4 <= _amount(state, state.jobs[state.queue[0]]) * 5


def _amount(state: State, job: Job) -> int:
    """How much there is to sample: enough to compare two jobs, and no pricing for every event."""
    weights = state.house.image_model(job.model).weights_bytes.get(Component.DIFFUSION, 1)
    return max(1, weights) * job.latent_height * job.latent_width * job.steps_count


def _model_demands(state: State) -> Iterator[Demand]:
    next_ms: dict[str, int | None] = {}  # What the next image takes, by card; asked for once.
    for model in state.models.values():
        if model.tide not in (Tide.COLD, Tide.WARM) or model.wish in HELD_DOWN:
            continue
        since_ms = oldest_waiting_ms(model)
        if since_ms is None:
            continue
        overdue = state.now_ms - since_ms >= state.policy.chat_wait_max_ms or goes_first(
            state, model, next_ms
        )
        priority = max(request.priority for request in model.requests.values())
        yield Demand(
            not overdue, since_ms - priority * state.policy.ageing_ms, DemandKind.RISE, model.name, since_ms
        )


def _guest_demands(state: State) -> Iterator[Demand]:
    for guest in state.guests.values():
        if guest.phase is GuestPhase.WAITING:
            yield Demand(True, guest.since_ms, DemandKind.GUEST, guest.lease, guest.since_ms)


def oldest_waiting_ms(model: Model) -> int | None:
    """Since when the request that waits longest has waited."""
    waits = [request.waiting_since_ms for request in model.requests.values() if request.phase in WAITING]
    return min(waits, default=None)
