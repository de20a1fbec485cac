"""ETA: when a waiting image will be done, by what is expected of it and of those before it.

Owns that sum. It is an expectation and no promise: what still has to be predicted is not guessed.
"""

from __future__ import annotations

from tidegate.core.image.job import ENDED, Job
from tidegate.core.stage import Stage
from tidegate.core.state import State
from tidegate.core.worker import WorkerKind


def eta_ms(state: State, name: str) -> int | None:
    """Milliseconds until a job will be done, by what is expected of it and of those before it; None if
    unknown.
    """
    job = state.jobs.get(name)
    if job is None or job.phase in ENDED:
        return None
    before = [
        other
        for other in state.jobs.values()
        if other.phase not in ENDED
        and (other.run is not None or (other.due_ms, other.name) < (job.due_ms, name))
    ]
    costs = [left_ms(state, other) for other in (*before, job) if other is not job or other.run is None]
    if job.run is not None:
        costs = [left_ms(state, job)]
    if any(cost is None for cost in costs):
        return None
    workers_count = sum(worker.kind is WorkerKind.IMAGE for worker in state.workers.values())
    return sum(cost for cost in costs if cost is not None) // (1 if job.run else workers_count)


def left_ms(state: State, job: Job) -> int | None:
    """Milliseconds that the machine is expected to work for a job, from now to its end; None if unknown."""
    now_ms = stage_left_ms(state, job)
    later_ms = [_stage_ms(state, job, stage) for stage in job.stages[1:]]
    known_ms = [cost for cost in (now_ms, *later_ms) if cost is not None]
    return sum(known_ms) if len(known_ms) == len(job.stages) else None


def stage_left_ms(state: State, job: Job) -> int | None:
    """Milliseconds that the stage which runs or comes next is expected to take from now; None if unknown."""
    run = job.run
    if run is not None and run.incarnation and run.ends_ms >= 0:
        return max(0, run.ends_ms - state.now_ms)
    whole_ms = _stage_ms(state, job, job.stage)
    if whole_ms is None or run is None or not run.incarnation:
        return whole_ms
    return max(0, whole_ms - (state.now_ms - run.begun_ms))


def _stage_ms(state: State, job: Job, stage: Stage) -> int | None:
    return state.catalog.least_ms(job.size(stage), job.work)
