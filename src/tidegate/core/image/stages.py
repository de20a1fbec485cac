"""Stages of image jobs: planned, bound, run, finished, failed.

Owns what happens to a job between submission and its end. The ladder after failures is `ladder.py`, waiting
for bytes `core/binding.py`, the order of jobs `core/queue.py` and `core/schedule.py`.
"""

from __future__ import annotations

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.binding import bind, describe, room_now, slot_of, take, unbind
from tidegate.core.catalog import SizeKey
from tidegate.core.house import RAM, Sight
from tidegate.core.image.failure import Attempt, Failure
from tidegate.core.image.job import PHASE_OF, Job, JobPhase, Run
from tidegate.core.lease import Lease, LeasePhase
from tidegate.core.llm.tide import CONTEXT
from tidegate.core.notice import blank_delivered, drifted
from tidegate.core.planner.filters import keeps_held
from tidegate.core.planner.plan import Plan
from tidegate.core.planner.question import Held, StageQuestion
from tidegate.core.queue import enqueue, leave
from tidegate.core.stage import COMPONENT_OF, Placement, Stage
from tidegate.core.state import PROCESS, Alarm, Binding, BindingKind, State
from tidegate.core.supervision import await_release, start, terminate
from tidegate.core.worker import Worker, WorkerPhase
from tidegate.core.yielding import Taker, concessions_for

COMPUTE = "compute"


def part_of(job: Job, stage: Stage) -> str:
    """Name the lease of the component that a stage computes with."""
    return f"{job.model}/{COMPONENT_OF[stage]}"


def overheads(state: State, worker: Worker) -> tuple[int, int]:
    """Bytes that a worker needs beside its stages and does not hold yet: device context, private RAM."""
    context = 0
    if worker.card and state.ledger.find(worker.name, CONTEXT) is None:
        context = state.ledger.pools[worker.card].descriptor.context_bytes
    process = 0 if state.ledger.find(worker.name, PROCESS) else state.policy.process_ram_bytes
    return context, process


def question_for(
    state: State, job: Job, worker: Worker, *, stage: Stage, candidates_max: int
) -> StageQuestion | None:
    """Ask how a stage of a job could run on a worker, or None while footprints are unknown."""
    options = state.catalog.options_of(job.size(stage), job.work)
    if options is None:
        return None
    context_bytes, process_bytes = overheads(state, worker)
    pools = state.ledger.pools
    part = part_of(job, stage)
    lease = state.ledger.find(worker.name, part)
    held = None
    if lease is not None and lease.execution is not None:
        held = Held(execution=lease.execution, card_bytes=lease.card_bytes, ram_bytes=lease.ram_bytes)
    card = None
    if worker.card:
        card = room_now(state, pools[worker.card], holder=worker.name, extra_bytes=context_bytes)
    taker = Taker(card=worker.card, worker=worker.name, model=job.model, own_part=part)
    return StageQuestion(
        stage=stage,
        subject=job.name,
        card=card,
        ram=room_now(state, pools[RAM], holder=worker.name, extra_bytes=process_bytes),
        options=options,
        held=held,
        concessions=concessions_for(state, taker),
        yield_order=state.policy.yield_order,
        candidates_max=candidates_max,
    )


def bind_stage(state: State, job: Job, worker: Worker, *, question: StageQuestion, plan: Plan) -> None:
    """Reserve what the plan needs and ask those who yield."""
    part = part_of(job, job.stage)
    lease = state.ledger.find(worker.name, part)
    kept = lease if question.held and keeps_held(question, plan.option) else None
    reserved = _reserve(state, job, worker, plan=plan, kept=kept)
    drops = (lease.number,) if lease is not None and plan.drops_held else ()
    worker.job = job.name
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
        (part_of(job, job.stage), component_card, component_ram),
        (COMPUTE, max(0, footprint.card_bytes - held_card), max(0, footprint.ram_bytes - held_ram)),
        (CONTEXT, context_bytes, 0),
        (PROCESS, 0, process_bytes),
    ]
    return [
        state.ledger.reserve(
            worker.name,
            part,
            incarnation=worker.incarnation,
            card=worker.card,
            card_bytes=card_bytes,
            ram_bytes=ram_bytes,
            at_ms=state.now_ms,
            execution=execution if "/" in part else None,
        )
        for part, card_bytes, ram_bytes in wanted
        if card_bytes or ram_bytes
    ]


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
        part=part_of(job, job.stage),
        card_bytes=plan.option.footprint.card_bytes,
        ram_bytes=plan.option.footprint.ram_bytes,
        quiet_ms=plan.score.load_ms + plan.score.run_ms // (job.steps_count if sampling else 1),
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
    wait_ms = stage_wait_ms(state, run)
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


def stage_wait_ms(state: State, run: Run) -> int:
    """How long a stage may go on without a sign of life."""
    return max(state.policy.stage_wait_min_ms, run.quiet_ms * state.policy.stage_patience)


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
    _learn(state, job, run, event=event)
    _settle(state, worker, run, keeps_component=True)
    job.tried = []
    job.stages = job.stages[1:]
    state.tell(job.name, f"{stage} done in {event.load_ms + event.run_ms} ms")
    if not job.stages:
        job.run = None
        worker.job = ""
        end(state, job, JobPhase.DONE)
        return
    _requeue(state, job)
    if job.is_cancelled:
        end(state, job, JobPhase.CANCELLED)


def _learn(state: State, job: Job, run: Run, *, event: ev.StageFinished) -> None:
    size: SizeKey = job.size(job.stage)
    state.catalog.learn_stage_ms(size, run.execution, load_ms=event.load_ms, run_ms=event.run_ms)
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
    if job.is_cancelled:
        end(state, job, JobPhase.CANCELLED)


def lost(state: State, worker: Worker, *, signal: int, hung: bool) -> None:
    """The worker of a job ended: classify, and try the stage again a rung lower."""
    job = state.jobs.get(worker.job)
    worker.job = ""
    if job is None or job.run is None or job.run.worker != worker.name:
        return
    failure = Failure.DIED
    if hung:
        failure = Failure.HANG
    elif signal in (9, 15):
        failure = Failure.KILLED
    state.clear_alarm(Alarm.STAGE, worker.name)
    _fell(state, job, job.run, failure=failure)


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
    _requeue(state, job)
    if job.is_cancelled:
        end(state, job, JobPhase.CANCELLED)


def _requeue(state: State, job: Job) -> None:
    job.run = None
    drop_bindings(state, job)
    job.to(JobPhase.QUEUED, state.stories.of(job.name))
    job.waiting_since_ms = state.now_ms
    enqueue(state, job)


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
    if job.is_cancelled:
        end(state, job, JobPhase.CANCELLED)


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
