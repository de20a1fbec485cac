"""Scheduling: after every event, in this order, whatever has become possible is done.

    1. bindings whose bytes were seen are granted; those that waited too long are planned anew
    2. processes that somebody needs are started; language models that can serve, serve
    3. those who wait for bytes are planned in the order of the queue
         3a. an image job on the idle worker where it costs least
         3b. a language model: all of it, or the most layers that fit
         3c. a guest
         3d. whoever has starved and would fit an emptied card lets nobody pass
    4. a chat that waits past its bound, or that it pays for, makes a sampling image yield
    5. nobody waits: bring back, release, pre-warm (`foresight.py`)

Owns this order. Plans come from the planner, who is next from `queue.py`, bytes from `binding.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from tidegate.core import effects as ef
from tidegate.core import negotiation, prediction
from tidegate.core.binding import is_grantable, is_void, room_emptied, room_ever, unbind
from tidegate.core.foresight import tend
from tidegate.core.house import RAM
from tidegate.core.image import stages, staging
from tidegate.core.image.job import Job, JobPhase
from tidegate.core.image.ladder import is_at_end
from tidegate.core.llm import demand as llm_demand
from tidegate.core.llm import service, wish
from tidegate.core.llm.level import HELD_DOWN, MOVING, SERVING
from tidegate.core.llm.model import Model
from tidegate.core.llm.tide import worker_of
from tidegate.core.llm.urgency import is_worth_quiet, pays
from tidegate.core.notice import patient, yielded
from tidegate.core.patience import answer_for, is_active, turn_ends_ms, waits_for_answers
from tidegate.core.planner.choose import choose
from tidegate.core.planner.plan import Plan, Refusal
from tidegate.core.planner.question import StageQuestion
from tidegate.core.queue import Demand, DemandKind, demands, enqueue, oldest_waiting_ms
from tidegate.core.stage import Stage
from tidegate.core.state import Binding, BindingKind, State
from tidegate.core.supervision import ensure, may_start
from tidegate.core.worker import FRONT, Worker, WorkerKind, WorkerPhase
from tidegate.core.yielding import Taker, Taking, concessions_for


def schedule(state: State) -> None:
    """Do whatever has become possible."""
    _settle_bindings(state)
    _run_services(state)
    waiting = demands(state)
    for wanted in waiting:
        if _try(state, wanted):
            continue
        if state.now_ms - wanted.since_ms >= state.policy.starving_ms and _would_fit_emptied(state, wanted):
            break
    _settle_bindings(state)
    for model in state.models.values():
        _yield_sampling(state, model)
    tend(state, is_calm=not waiting)
    _settle_bindings(state)


def _settle_bindings(state: State) -> None:
    for binding in tuple(state.bindings.values()):
        worker = state.workers.get(binding.worker)
        if is_void(state, binding):
            replan(state, binding, why="its component did not stay loaded")
        elif (worker is None or may_start(worker)) and is_grantable(state, binding):
            _grant(state, binding)


def _grant(state: State, binding: Binding) -> None:
    match binding.kind:
        case BindingKind.STAGE:
            staging.grant_stage(state, binding)
        case BindingKind.RISE:
            llm_demand.grant_rise(state, binding)
        case BindingKind.GUEST:
            negotiation.grant_guest(state, binding)
        case _:
            assert_never(binding.kind)


def replan(state: State, binding: Binding, *, why: str) -> None:
    """A binding got no bytes in time, or its worker is gone: take it off and let it be planned anew."""
    unbind(state, binding)
    if binding.kind is BindingKind.STAGE and not binding.look_ahead:
        job = state.jobs[binding.subject]
        state.tell(job.name, f"{why}: planned anew")
        enqueue(state, job)


def _run_services(state: State) -> None:
    prediction.ensure_predictor(state)
    for model in state.models.values():
        service.sweep(state, model)
        wish.lower(state, model)
        # Prompts are read and checked before anything of the card is needed, so the front is always up.
        ensure(state, state.workers[FRONT])
        service.serve(state, model)


# --- 3: whoever waits for bytes ---


def _try(state: State, wanted: Demand) -> bool:
    """Plan one demand; True when it waits for bytes no longer, or for bytes that were promised to it."""
    match wanted.kind:
        case DemandKind.JOB:
            return _try_job(state, state.jobs[wanted.subject])
        case DemandKind.RISE:
            return _try_model(state, state.models[wanted.subject])
        case DemandKind.GUEST:
            return _try_guest(state, wanted.subject)
        case _:
            assert_never(wanted.kind)


def _eligible(state: State, job: Job) -> list[Worker]:
    workers = [worker for worker in state.workers.values() if worker.kind is WorkerKind.IMAGE]
    own = [worker for worker in workers if worker.job == job.name]
    return [
        worker
        for worker in own or workers
        if worker.job in ("", job.name)
        and may_start(worker)
        and (worker.card or worker.name) not in state.bindings
        and not state.ledger.is_releasing(worker.name)
    ]


def _try_job(state: State, job: Job) -> bool:
    workers = _eligible(state, job)
    best: tuple[Plan, StageQuestion, Worker] | None = None
    refused: tuple[Refusal, StageQuestion] | None = None
    waits = False
    for worker in workers:
        if state.catalog.options_of(job.size(job.stage), job.work) is None:
            prediction.plan_ahead(state, job)
            return False
        found = answer_for(state, job, worker, candidates_max=state.policy.candidates_max // len(workers))
        if found is None:
            waits = True
            _tell_patience(state, job, worker)
            continue
        answer, question = found
        match answer:
            case Refusal():
                refused = refused or (answer, question)
            case Plan():
                if best is None or answer.score < best[0].score:
                    best = (answer, question, worker)
            case _:
                assert_never(answer)
    if best is not None:
        plan, question, worker = best
        job.refused_since_ms = -1
        staging.bind_stage(state, job, worker, question=question, plan=plan)
        return True
    if refused is not None and not waits:
        for worker in workers:
            worker.job = ""  # It must not keep others waiting while it waits for memory.
        _refuse_job(state, job, *refused)
    return False


def _tell_patience(state: State, job: Job, worker: Worker) -> None:
    """Say once for each image whom it waits for, where these compute."""
    if not job.was_patient:
        job.was_patient = True
        beside = (model for model in state.models.values() if model.card == worker.card and is_active(model))
        state.notify(patient(job.name, job.stage, names=tuple(model.name for model in beside)))


def _refuse_job(state: State, job: Job, refusal: Refusal, question: StageQuestion) -> None:
    if is_at_end(job.tried):
        last = job.tried[-1].failure
        message = f"{job.stage} failed in every way there is: {last.text()}. {last.advice()}".strip()
        stages.end(state, job, JobPhase.FAILED, code="worker", message=message)
        return
    if job.refused_since_ms < 0:
        job.refused_since_ms = state.now_ms
        state.tell(job.name, refusal.explain()[0])
        if isinstance(choose(_with_rooms(state, question, ever=True)), Refusal):
            fault = refusal.fault()
            stages.end(state, job, JobPhase.FAILED, code=fault.code, message=fault.message)
        return
    if state.now_ms - job.refused_since_ms >= state.policy.capacity_wait_max_ms:
        fault = refusal.fault()
        stages.end(
            state,
            job,
            JobPhase.FAILED,
            code=fault.code,
            message=fault.message,
            retry_after_ms=state.policy.capacity_wait_max_ms,
        )


def _with_rooms(state: State, question: StageQuestion, *, ever: bool) -> StageQuestion:
    """The same question for an emptied house, with foreign use (now) or without (ever)."""
    pools = state.ledger.pools
    make = room_ever if ever else room_emptied
    card = None
    if question.card is not None:
        pool = pools[question.card.name]
        card = make(pool, extra_bytes=question.card.headroom_bytes - pool.headroom_bytes)
    ram = make(pools[RAM], extra_bytes=question.ram.headroom_bytes - pools[RAM].headroom_bytes)
    return replace(question, card=card, ram=ram, concessions=(), held=None)


def _model_question(state: State, model: Model) -> StageQuestion | None:
    waits = waits_for_answers(state, model)
    taker = Taker(
        card=model.card,
        worker=worker_of(state, model).name,
        model=model.name,
        taking=Taking.IDLE if waits else Taking.ALLOWED,
    )
    return llm_demand.question_for(
        state,
        model,
        concessions=concessions_for(state, taker),
        candidates_max=state.policy.candidates_max,
    )


def _try_model(state: State, model: Model) -> bool:
    worker = worker_of(state, model)
    binding = state.bindings.get(model.card or worker.name)
    if binding is not None:
        return binding.kind is BindingKind.RISE and binding.subject == model.name
    if worker.phase not in (WorkerPhase.ABSENT, WorkerPhase.READY) or state.ledger.is_releasing(worker.name):
        return False
    if model.attempts_count >= state.policy.level_attempts_max:
        _fail_requests(state, model, code="worker", message=f"{model.name} could not be loaded.")
        model.attempts_count = 0
        return False
    question = _model_question(state, model)
    if question is None:
        prediction.want_llm(state, model.name)
        prediction.ensure_predictor(state)
        return False
    answer = choose(question)
    match answer:
        case Plan():
            moment = _is_settling(state, model.card) or waits_for_answers(state, model)
            if answer.execution.layers_count and moment:
                return False  # In a moment there is more room, and perhaps for all of it.
            model.refused_since_ms = -1
            llm_demand.bind_rise(state, model, answer)
            return True
        case Refusal():
            _refuse_model(state, model, answer, question)
            return False
        case _:
            assert_never(answer)


def _is_settling(state: State, card: str) -> bool:
    """Whether bytes of an image worker on this card are on their way back."""
    return any(
        worker.card == card and worker.kind is WorkerKind.IMAGE and state.ledger.is_releasing(worker.name)
        for worker in state.workers.values()
    )


def _refuse_model(state: State, model: Model, refusal: Refusal, question: StageQuestion) -> None:
    fault = refusal.fault()
    if model.refused_since_ms < 0:
        model.refused_since_ms = state.now_ms
        state.tell(model.name, refusal.explain()[0])
        if isinstance(choose(_with_rooms(state, question, ever=True)), Refusal):
            _fail_requests(state, model, code=fault.code, message=fault.message)
    elif state.now_ms - model.refused_since_ms >= state.policy.capacity_wait_max_ms:
        _fail_requests(state, model, code=fault.code, message=fault.message)


def _fail_requests(state: State, model: Model, *, code: str, message: str) -> None:
    model.refused_since_ms = -1
    for request in tuple(model.requests.values()):
        service.end(state, model, request, outcome=ef.Outcome.FAILED, code=code, message=message)


def _try_guest(state: State, lease: str) -> bool:
    guest = state.guests[lease]
    binding = state.bindings.get(guest.card)
    if binding is not None:
        return binding.kind is BindingKind.GUEST and binding.subject == lease
    answer = negotiation.plan_for(state, guest)
    if isinstance(answer, Refusal):
        return False
    negotiation.bind_guest(state, guest, answer)
    return True


def _would_fit_emptied(state: State, wanted: Demand) -> bool:
    """Whether waiting helps: with everything of ours gone, this demand would fit beside what is foreign."""
    match wanted.kind:
        case DemandKind.GUEST:
            return False  # Guests take what is idle; nobody stands still for them.
        case DemandKind.RISE:
            question = _model_question(state, state.models[wanted.subject])
        case DemandKind.JOB:
            job = state.jobs.get(wanted.subject)
            workers = _eligible(state, job) if job is not None and job.phase is JobPhase.QUEUED else []
            if job is None or not workers:
                return False  # It waits for a worker that computes for somebody else, not for bytes.
            question = staging.question_for(
                state, job, workers[0], stage=job.stage, candidates_max=state.policy.candidates_max
            )
        case _:
            assert_never(wanted.kind)
    return question is not None and isinstance(choose(_with_rooms(state, question, ever=False)), Plan)


# --- 4: a chat that waited too long, or for which a pause pays ---


def _is_worth_stopping(state: State, model: Model, job: Job) -> bool:
    if model.tide in SERVING:
        return is_worth_quiet(state, model, job)
    since_ms = oldest_waiting_ms(model)
    if model.tide in MOVING or since_ms is None:
        return False
    return state.now_ms - since_ms >= state.policy.chat_wait_max_ms or pays(state, model, job)


def _yield_sampling(state: State, model: Model) -> None:
    """Let a sampling image on the model's card yield, when it has had its quantum; its tape loses nothing."""
    if not model.requests or model.wish in HELD_DOWN:
        return
    for worker in state.workers.values():
        job = state.jobs.get(worker.job)
        if worker.card != model.card or job is None or job.run is None or job.phase is not JobPhase.DENOISE:
            continue
        run = job.run
        if run.is_stopping or not run.incarnation or turn_ends_ms(state, job) > state.now_ms:
            continue
        if not _is_worth_stopping(state, model, job):
            continue
        since_ms = oldest_waiting_ms(model)
        waited_ms = 0 if model.tide in SERVING or since_ms is None else state.now_ms - since_ms
        state.notify(yielded(job.name, to=model.name, waited_ms=waited_ms))
        job.yields_count += 1
        stages.stop(state, job, ef.StopReason.YIELD)
        assert job.stage is Stage.DENOISE, "only sampling has a tape to go on from"
