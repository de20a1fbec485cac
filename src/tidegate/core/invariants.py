"""Invariants: what must hold after every event, whatever happened before.

Owns the checks. The cheap ones run in production after every event; all of them in tests. A broken one is a
bug of the core and says so with its story; nothing is repaired here.
"""

from __future__ import annotations

from tidegate.core.faults import Bug
from tidegate.core.house import RAM
from tidegate.core.image.job import ENDED, JobPhase
from tidegate.core.lease import LeasePhase
from tidegate.core.llm.level import SERVING, Tide
from tidegate.core.llm.request import RequestPhase
from tidegate.core.llm.tide import worker_of
from tidegate.core.state import BindingKind, State
from tidegate.core.worker import WorkerPhase


def _must(holds: bool, what: str, state: State, *, subject: str = "") -> None:  # noqa: FBT001 - it is an assertion
    if not holds:
        told = "; ".join(state.stories.of(subject)[-8:])
        raise Bug(f"{what} Story of {subject or 'the house'}: {told or 'none'}")


def check_cheap(state: State) -> None:
    """Sums that are not negative and limits that are kept; a few microseconds."""
    for pool in state.ledger.pools.values():
        _must(pool.charged_bytes >= 0 and pool.reserved_bytes >= 0, f"{pool.name}: negative sums.", state)
        _must(
            pool.charged_bytes <= pool.descriptor.total_bytes,
            f"{pool.name}: more granted than there is.",
            state,
        )
    _must(len(state.queue) <= state.policy.jobs_max, "The queue is longer than its limit.", state)
    _must(len(state.guests) <= state.policy.guests_max, "More guests than allowed.", state)


def check(state: State) -> None:
    """Everything; for tests, and for the doctor."""
    check_cheap(state)
    _check_ledger(state)
    _check_jobs(state)
    _check_models(state)
    _check_bindings(state)


def _check_ledger(state: State) -> None:
    charged = dict.fromkeys(state.ledger.pools, 0)
    reserved = dict.fromkeys(state.ledger.pools, 0)
    for lease in state.ledger.leases():
        _must(
            lease.card_bytes >= 0 and lease.ram_bytes >= 0,
            "A lease is negative.",
            state,
            subject=lease.holder,
        )
        sums = reserved if lease.phase is LeasePhase.RESERVED else charged
        sums[RAM] += lease.ram_bytes
        if lease.card:
            sums[lease.card] += lease.card_bytes
        worker = state.workers.get(lease.holder)
        if worker is not None and lease.is_charged and not lease.is_standing:
            _must(worker.is_alive, f"{lease.part} is charged to a dead worker.", state, subject=lease.holder)
            current = lease.incarnation == worker.incarnation
            _must(current, f"{lease.part} belongs to an older incarnation.", state, subject=lease.holder)
        elif worker is None and lease.is_charged:
            guest = lease.holder.removeprefix("guest/")
            _must(guest in state.guests, "A lease of a guest that is gone.", state, subject=lease.holder)
    for name, pool in state.ledger.pools.items():
        _must(pool.charged_bytes == charged[name], f"{name}: charged sum is off.", state)
        _must(pool.reserved_bytes == reserved[name], f"{name}: reserved sum is off.", state)


def _check_jobs(state: State) -> None:
    waiting = {binding.subject for binding in state.bindings.values() if binding.kind is BindingKind.STAGE}
    owners: dict[str, str] = {}
    for worker in state.workers.values():
        if worker.job:
            _must(worker.job in state.jobs, "A worker keeps a job that is gone.", state, subject=worker.name)
            _must(worker.job not in owners, "Two workers keep one job.", state, subject=worker.job)
            owners[worker.job] = worker.name
    _must(len(set(state.queue)) == len(state.queue), "A job stands in the queue twice.", state)
    for job in state.jobs.values():
        running = job.phase not in (JobPhase.QUEUED, JobPhase.PLANNING, *ENDED)
        _must(
            running == (job.run is not None),
            "A running job has a run, others have none.",
            state,
            subject=job.name,
        )
        in_queue = job.name in state.queue
        queued = job.phase is JobPhase.QUEUED and job.name not in waiting
        _must(in_queue == queued, "A job is lost: neither queued nor bound.", state, subject=job.name)
        if job.run is not None:
            loaded = state.ledger.find(job.run.worker, job.run.part) is not None
            _must(loaded, "A stage runs without a lease for its component.", state, subject=job.name)
            owns = owners.get(job.name) == job.run.worker
            _must(owns, "A job runs on a worker that does not keep it.", state, subject=job.name)


def _check_models(state: State) -> None:
    for model in state.models.values():
        worker = worker_of(state, model)
        if model.tide in (*SERVING, Tide.EBBING, Tide.WARM, Tide.RETURNING):
            alive = worker.phase in (WorkerPhase.READY, WorkerPhase.STOPPING, WorkerPhase.KILLING)
            _must(alive, f"{model.tide} without a process.", state, subject=model.name)
        if model.tide is Tide.COLD:
            dead = worker.phase in (WorkerPhase.ABSENT, WorkerPhase.RESTING)
            _must(dead, "cold with a process.", state, subject=model.name)
        served = sum(request.phase is RequestPhase.RUNNING for request in model.requests.values())
        _must(served <= model.slots_count, "More requests than slots.", state, subject=model.name)
        may_serve = model.tide in (*SERVING, Tide.EBBING, Tide.SINKING)
        _must(not served or may_serve, "Requests are served without weights.", state, subject=model.name)


def _check_bindings(state: State) -> None:
    for slot, binding in state.bindings.items():
        _must(binding.slot == slot, "A binding stands in the wrong slot.", state, subject=binding.subject)
        numbers = {
            lease.number for lease in state.ledger.of(binding.worker) if lease.phase is LeasePhase.RESERVED
        }
        whole = numbers.issuperset(binding.leases)
        _must(whole, "A binding has lost its reservations.", state, subject=binding.subject)
