"""Staging: from a waiting job to RunStage. The question, the reservation, the grant and the order to the
worker.

Owns how a stage gets onto a worker. What becomes of it afterwards is `stages.py`; waiting for bytes is
`core/binding.py`; the lease parts of an image worker are named here.
"""

from __future__ import annotations

from tidegate.core import effects as ef
from tidegate.core.binding import bind, describe, reserved, rooms_now, slot_of, take
from tidegate.core.image.failure import Failure
from tidegate.core.image.job import PHASE_OF, Job, Run
from tidegate.core.lease import Lease
from tidegate.core.llm.tide import CONTEXT
from tidegate.core.planner.filters import keeps_held
from tidegate.core.planner.plan import Plan
from tidegate.core.planner.question import Held, StageQuestion
from tidegate.core.queue import leave
from tidegate.core.stage import COMPONENT_OF, Placement, Stage
from tidegate.core.state import PROCESS, Alarm, Binding, BindingKind, State
from tidegate.core.supervision import start
from tidegate.core.worker import Worker, WorkerPhase
from tidegate.core.yielding import Taker, Taking, concessions_for

COMPUTE = "compute"
# Eight minutes without a step, where the first patience is one: whoever needs longer is not slow any more.
PATIENCE_DOUBLINGS_MAX = 3


def part_of(state: State, job: Job, stage: Stage) -> str:
    """Name the lease of the component that a stage computes with."""
    return state.house.image_model(job.model).part(COMPONENT_OF[stage])


def overheads(state: State, worker: Worker) -> tuple[int, int]:
    """Bytes that a worker needs beside its stages and does not hold yet: device context, private RAM."""
    context = 0
    if worker.card and state.ledger.find(worker.name, CONTEXT) is None:
        context = state.ledger.pools[worker.card].descriptor.context_bytes
    process = 0 if state.ledger.find(worker.name, PROCESS) else state.policy.process_ram_bytes
    return context, process


def question_for(
    state: State,
    job: Job,
    worker: Worker,
    *,
    stage: Stage,
    candidates_max: int,
    taking: Taking = Taking.ALLOWED,
) -> StageQuestion | None:
    """Ask how a stage of a job could run on a worker, or None while footprints are unknown."""
    options = state.catalog.options_of(job.size(stage), job.work)
    if options is None:
        return None
    context_bytes, process_bytes = overheads(state, worker)
    card, ram = rooms_now(
        state,
        worker.card,
        holder=worker.name,
        card_extra_bytes=context_bytes,
        ram_extra_bytes=process_bytes,
    )
    part = part_of(state, job, stage)
    lease = state.ledger.find(worker.name, part)
    held = None
    if lease is not None and lease.execution is not None:
        held = Held(execution=lease.execution, card_bytes=lease.card_bytes, ram_bytes=lease.ram_bytes)
    taker = Taker(card=worker.card, worker=worker.name, model=job.model, own_part=part, taking=taking)
    return StageQuestion(
        stage=stage,
        subject=job.name,
        card=card,
        ram=ram,
        options=options,
        held=held,
        concessions=concessions_for(state, taker),
        yield_order=state.policy.yield_order,
        candidates_max=candidates_max,
    )


def bind_stage(state: State, job: Job, worker: Worker, *, question: StageQuestion, plan: Plan) -> None:
    """Reserve what the plan needs and ask those who yield."""
    part = part_of(state, job, job.stage)
    lease = state.ledger.find(worker.name, part)
    kept = lease if question.held and keeps_held(question, plan.option) else None
    reserved = _reserve(state, job, worker, plan=plan, kept=kept)
    drops = (lease.number,) if lease is not None and plan.drops_held else ()
    worker.job = job.name
    if job.model in state.unwanted:
        state.unwanted.remove(job.model)  # Somebody wants it again.
    leave(state, job)
    state.tell(job.name, f"{job.stage} planned {describe(plan)}")
    bind(
        state,
        Binding(
            kind=BindingKind.STAGE,
            slot=slot_of(worker.card, worker.name),
            subject=job.name,
            worker=worker.name,
            plan=plan,
            leases=tuple(lease.number for lease in reserved),
            drops=drops,
            keeps=kept.number if kept is not None else 0,
            since_ms=state.now_ms,
        ),
    )


def _reserve(state: State, job: Job, worker: Worker, *, plan: Plan, kept: Lease | None) -> list[Lease]:
    footprint, execution = plan.option.footprint, plan.execution
    component_card = component_ram = 0
    if kept is None:
        if execution.placement is Placement.CARD:
            component_card = min(footprint.weights_bytes, footprint.card_bytes)
        else:
            component_ram = min(footprint.weights_bytes, footprint.ram_bytes)
    context_bytes, process_bytes = overheads(state, worker)
    if not footprint.card_bytes:
        context_bytes = 0
    held_card, held_ram = (kept.card_bytes, kept.ram_bytes) if kept else (component_card, component_ram)
    wanted = [
        (part_of(state, job, job.stage), component_card, component_ram),
        (COMPUTE, max(0, footprint.card_bytes - held_card), max(0, footprint.ram_bytes - held_ram)),
        (CONTEXT, context_bytes, 0),
        (PROCESS, 0, process_bytes),
    ]
    return reserved(state, worker, wanted, execution=execution)


def grant_stage(state: State, binding: Binding) -> None:
    """The bytes are there: start the stage, or first the worker."""
    job, worker = state.jobs[binding.subject], state.workers[binding.worker]
    alive = worker.phase in (WorkerPhase.READY, WorkerPhase.STARTING)
    plan = binding.plan
    leases = [lease for lease in state.ledger.of(worker.name) if lease.number in binding.leases]
    process = next((lease for lease in leases if lease.part == PROCESS), None)
    if not alive:
        start(state, worker, process=process)
    take(state, binding, incarnation=worker.incarnation)
    job.attempts_count += 1
    sampling = job.stage is Stage.DENOISE
    job.run = Run(
        worker=worker.name,
        incarnation=0,
        attempt=job.attempts_count,
        execution=plan.execution,
        part=part_of(state, job, job.stage),
        card_bytes=plan.option.footprint.card_bytes,
        ram_bytes=plan.option.footprint.ram_bytes,
        quiet_ms=plan.score.load_ms + plan.score.run_ms // (job.steps_count if sampling else 1),
        step_ms=plan.score.run_ms // (job.steps_count if sampling else 1),
    )
    job.to(PHASE_OF[job.stage], state.stories.of(job.name))
    if worker.phase is WorkerPhase.READY:
        run_stage(state, job, worker)


def run_stage(state: State, job: Job, worker: Worker) -> None:
    """Tell a ready worker to run the stage that was granted to it."""
    run = job.run
    assert run is not None, "a granted stage has a run"
    run.incarnation = worker.incarnation
    run.begun_ms = state.now_ms
    wait_ms = stage_wait_ms(state, job, run)
    state.set_alarm(Alarm.STAGE, worker.name, in_ms=wait_ms)
    state.tell(job.name, f"{job.stage} runs {run.execution.text()} on {worker.name}")
    state.emit(
        ef.RunStage(
            job=job.name,
            model=job.model,
            stage=job.stage,
            worker=worker.name,
            incarnation=worker.incarnation,
            attempt=run.attempt,
            execution=run.execution,
            card_bytes=run.card_bytes,
            ram_bytes=run.ram_bytes,
            deadline_ms=state.now_ms + wait_ms,
        )
    )


def stage_wait_ms(state: State, job: Job, run: Run) -> int:
    """How long a stage may go on without a sign of life: twice as long after each time that it took too long,
    for a machine that is slow today would otherwise never get it done.
    """
    patience_ms = max(state.policy.stage_wait_min_ms, run.quiet_ms * state.policy.stage_patience)
    hangs_count = sum(attempt.failure is Failure.HANG for attempt in job.tried)
    return patience_ms << min(hangs_count, PATIENCE_DOUBLINGS_MAX)
