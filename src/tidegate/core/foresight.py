"""Foresight: what is done while nobody waits, and what is begun before it is needed.

    look-ahead    the decode is negotiated while sampling runs; nothing unseen is granted
    bring-back    who was pushed off the card returns when there is room, most valuable first
    relief        somebody foreign took more than there was: who is idle makes room
    release       who is idle for longer than its return is worth gives its bytes up (ski rental)
    pre-warm      who by its rhythm, or by somebody who begins to type, is wanted soon is brought back, never
                  at the cost of a job

Owns these five, and the time of the next look. They use the same planner and bindings as everybody.
"""

from __future__ import annotations

from dataclasses import replace

from tidegate.core import events as ev
from tidegate.core.binding import bind, slot_of
from tidegate.core.house import RAM
from tidegate.core.image import stages, staging
from tidegate.core.image.job import Job, JobPhase, Run
from tidegate.core.lease import LeasePhase
from tidegate.core.llm import demand as llm_demand
from tidegate.core.llm.level import HELD_DOWN, SERVING, Level, Tide
from tidegate.core.llm.model import Model
from tidegate.core.llm.tide import running, sink, worker_of
from tidegate.core.llm.wish import give_up, is_wished_up
from tidegate.core.notice import awaited, prewarmed, released_idle, relieved, unloaded
from tidegate.core.patience import answers_until_ms, quantum_until_ms, turn_ends_ms
from tidegate.core.planner.choose import choose, yield_ordered
from tidegate.core.planner.plan import Plan
from tidegate.core.planner.question import Concession, StageQuestion
from tidegate.core.pool import Pool
from tidegate.core.prediction import ensure_predictor, want_llm
from tidegate.core.stage import Component
from tidegate.core.state import Alarm, Binding, BindingKind, State
from tidegate.core.supervision import release
from tidegate.core.worker import Worker, WorkerKind, WorkerPhase
from tidegate.core.yielding import Taker, Taking, ask, concessions_for, is_idle

AHEAD = "ahead"
# Yielding is begun this many times earlier than it is expected to take.
LEAD_PARTS = 2
# Ski rental: an idle tenant stays until the rent equals the price of its return. One millisecond of return is
# worth this many of idling, so that a model that loads in two seconds stays for ten minutes.
RENT_PARTS = 300
# A forecast may stretch the rent at most to this multiple: that bounds what a wrong one can cost.
FORECAST_STRETCH = 2
TEND = "house"


def look_ahead(state: State, event: ev.StageProgressed) -> None:
    """A sampling step is done: when few are left, negotiate the next stage now."""
    found = stages.run_of(state, event)
    if found is None:
        return
    job, run = found
    worker = state.workers[run.worker]
    state.set_alarm(Alarm.STAGE, worker.name, in_ms=staging.stage_wait_ms(state, job, run))
    _note_step(state, run, event)
    if job.phase is JobPhase.DENOISE:
        stages.got_on(state, job, run, step=event.step)
    if run.looked_ahead or run.is_stopping or job.phase is not JobPhase.DENOISE or len(job.stages) < 2:
        return
    slot = slot_of(worker.card, worker.name)
    left_ms = run.ends_ms - state.now_ms
    if left_ms <= state.policy.look_ahead_ms and worker.card and slot not in state.bindings:
        _negotiate_next(state, job, run, worker=worker)


def _note_step(state: State, run: Run, event: ev.StageProgressed) -> None:
    """When sampling will end, by the steps of this run; those of an earlier one are replayed in no time."""
    step_ms = run.step_ms
    if run.step < 0:
        run.step, run.step_at_ms = event.step, state.now_ms
    elif event.step > run.step:
        step_ms = (state.now_ms - run.step_at_ms) // (event.step - run.step)
    run.interval_ms = state.now_ms - (run.heard_ms or run.begun_ms)
    run.heard_ms = state.now_ms
    run.ends_ms = state.now_ms + (event.steps_count - event.step) * step_ms


def _negotiate_next(state: State, job: Job, run: Run, *, worker: Worker) -> None:
    # Answers that are being given go on: whether the next stage waits for them is decided when it comes.
    question = staging.question_for(
        state,
        job,
        worker,
        stage=job.stages[1],
        candidates_max=state.policy.candidates_max,
        taking=Taking.IDLE,
    )
    if question is None or question.card is None:
        return
    question, own_card = _once_finished(state, run, question, worker=worker)
    plan = choose(question)
    if not isinstance(plan, Plan):
        return
    short_bytes = plan.option.footprint.card_bytes - own_card
    # Early enough to be done in time, and no earlier: whoever yields is missing from then on.
    lead_ms = LEAD_PARTS * plan.score.free_ms + run.interval_ms
    if run.ends_ms - state.now_ms > lead_ms:
        return
    run.looked_ahead = True
    if short_bytes <= 0:
        return
    lease = state.ledger.reserve(
        worker.name,
        AHEAD,
        incarnation=worker.incarnation,
        card=worker.card,
        card_bytes=short_bytes,
        ram_bytes=0,
        at_ms=state.now_ms,
    )
    state.tell(job.name, f"{plan.stage} is negotiated while sampling runs")
    bind(
        state,
        Binding(
            kind=BindingKind.STAGE,
            slot=slot_of(worker.card, worker.name),
            subject=job.name,
            worker=worker.name,
            plan=plan,
            leases=(lease.number,),
            since_ms=state.now_ms,
            look_ahead=True,
        ),
    )


def _once_finished(
    state: State, run: Run, question: StageQuestion, *, worker: Worker
) -> tuple[StageQuestion, int]:
    """The question as it will stand when this stage has ended, and the card bytes that are free by then: its
    compute buffers go, its component is finished.
    """
    assert question.card is not None, "only a stage on a card is negotiated ahead"
    own = [lease for lease in state.ledger.of(worker.name) if lease.part in (run.part, staging.COMPUTE)]
    own_card = sum(lease.card_bytes for lease in own if lease.phase is not LeasePhase.RESERVED)
    own_ram = sum(lease.ram_bytes for lease in own if lease.phase is not LeasePhase.RESERVED)
    then = replace(
        question,
        card=replace(question.card, free_bytes=question.card.free_bytes + own_card),
        ram=replace(question.ram, free_bytes=question.ram.free_bytes + own_ram),
    )
    return then, own_card


# --- while nobody waits ---


def tend(state: State, *, is_calm: bool) -> None:
    """Bring back, pre-warm and release when nobody waits; then say when to look again."""
    if is_calm and not state.bindings:
        for model in sorted(state.models.values(), key=lambda model: (-_value(state, model), model.name)):
            _bring_back(state, model)
    for pool in state.ledger.pools.values():
        _relieve(state, pool)
    for model in state.models.values():
        _release_idle_model(state, model)
    for worker in state.workers.values():
        if worker.kind is WorkerKind.IMAGE and not worker.job:
            _release_idle_components(state, worker)
    _set_next_look(state, is_calm=is_calm)


def _relieve(state: State, pool: Pool) -> None:
    """Give way to foreign applications: idle tenants go, cheapest first, until the pool is not overdrawn."""
    short_bytes = -pool.unclaimed_bytes
    if short_bytes <= 0 or any(lease.phase is LeasePhase.RELEASING for lease in state.ledger.leases()):
        return
    card = "" if pool.name == RAM else pool.name
    idle = concessions_for(state, Taker(card=card, taking=Taking.IDLE))
    asked = []
    for concession in yield_ordered(idle, state.policy.yield_order):
        freed_bytes = concession.card_bytes if card else concession.ram_bytes
        if short_bytes > 0 and freed_bytes > 0:
            short_bytes -= freed_bytes
            asked.append(concession)
            state.notify(relieved(concession.name, pool.name, amount_bytes=freed_bytes))
    ask(state, asked)


def _value(state: State, model: Model) -> int:
    """What having it on the card is worth: chance of use x price of return, for each byte."""
    footprint = state.catalog.llms.get(model.name)
    if footprint is None:
        return 0
    needed = model.rhythm.needed_permille(state.now_ms, within_ms=state.policy.idle_release_ms)
    price_ms = state.catalog.level_cost_ms(model.name, "rising")
    return needed * price_ms * 1_000_000 // max(1, footprint.weights_bytes + footprint.kv_bytes)


def _bring_back(state: State, model: Model) -> None:
    worker = worker_of(state, model)
    if (model.card or worker.name) in state.bindings or _is_taken(state, model.card):
        return
    wished = is_wished_up(model)
    if state.policy.prewarm_ms < 0 and not wished:
        return
    pushed = model.was_pushed and state.now_ms - model.used_ms < state.policy.idle_release_ms
    if model.tide is Tide.PARTIAL and (pushed or model.wish is Level.HOT):
        _refloat(state, model)
    expected_ms = _expected_ms(state, model)
    if model.tide not in (Tide.COLD, Tide.WARM) or not (pushed or wished or expected_ms is not None):
        return
    if (model.tide is Tide.WARM and model.wish is Level.WARM) or model.wish is Level.COLD:
        return
    fresh = pushed or wished or model.prewarmed_ms != expected_ms
    quiet = worker.phase in (WorkerPhase.ABSENT, WorkerPhase.READY)
    quiet = quiet and not state.ledger.is_releasing(worker.name)
    if not fresh or not quiet or (model.attempts_count and not wished):
        return
    plan = _return_plan(state, model, is_wished=wished)
    if plan is None:
        return
    if not (pushed or wished) and expected_ms is not None:
        model.prewarmed_ms = expected_ms
        intended = model.rhythm.is_intended(state.now_ms)
        text = awaited(model.name) if intended else prewarmed(model.name, in_ms=expected_ms - state.now_ms)
        state.notify(text)
    llm_demand.bind_rise(state, model, plan)


def _expected_ms(state: State, model: Model) -> int | None:
    """For when it is expected, if that is about now."""
    if model.rhythm.is_intended(state.now_ms):
        return model.rhythm.intent_ms
    expected_ms = model.rhythm.next_ms
    soon = expected_ms is not None and abs(expected_ms - state.now_ms) <= _lead_ms(state, model)
    return expected_ms if soon else None


def _return_plan(state: State, model: Model, *, is_wished: bool) -> Plan | None:
    """How it would come back: wholly and without bothering anybody, or as it is wished, at the cost of those
    who are idle.
    """
    concessions: tuple[Concession, ...] = ()
    if is_wished:
        if model.attempts_count >= state.policy.level_attempts_max:
            give_up(state, model, why="it could not be loaded")
            return None
        worker = worker_of(state, model)
        taker = Taker(
            card=model.card, worker=worker.name, model=model.name, taking=Taking.IDLE, spares_pinned=True
        )
        concessions = concessions_for(state, taker)
    question = llm_demand.question_for(
        state, model, concessions=concessions, candidates_max=state.policy.candidates_max
    )
    if question is None:
        want_llm(state, model.name)
        ensure_predictor(state)
        return None
    plan = choose(question)
    if not isinstance(plan, Plan) or (plan.execution.layers_count and not is_wished):
        return None
    return plan


def _is_taken(state: State, card: str) -> bool:
    """Whether an image is being made on this card: its next stages may need what is free now."""
    return any(worker.job for worker in state.workers.values() if worker.card == card)


def _lead_ms(state: State, model: Model) -> int:
    return 2 * state.catalog.level_cost_ms(model.name, "rising") + state.policy.prewarm_ms


def _refloat(state: State, model: Model) -> None:
    """Take a partly loaded model down, when it would come back wholly; whoever it serves waits a moment and
    is served faster then.
    """
    footprint = state.catalog.llms[model.name]
    pool = state.ledger.pools[model.card]
    own_bytes = sum(lease.card_bytes for lease in state.ledger.of(worker_of(state, model).name))
    needed_bytes = sum(footprint.on_card(footprint.layers_count)) + pool.descriptor.context_bytes
    rested = state.now_ms - model.serving_since_ms >= state.policy.quantum_ms
    fits = pool.free_bytes + own_bytes - pool.headroom_bytes >= needed_bytes
    if fits and (rested or model.wish is Level.HOT):
        sink(state, model, Level.COLD)


def _keep_ms(state: State, model: Model) -> int:
    """How long an idle model may stay: until the rent equals its return, longer when it is expected."""
    rent_ms = RENT_PARTS * state.catalog.level_cost_ms(model.name, "rising")
    keep_ms = max(state.policy.idle_release_ms, rent_ms)
    expected_ms = model.rhythm.next_ms
    if expected_ms is not None and expected_ms > model.used_ms + keep_ms:
        return min(FORECAST_STRETCH * keep_ms, expected_ms - model.used_ms + _lead_ms(state, model))
    return keep_ms


def _release_idle_model(state: State, model: Model) -> None:
    if model.tide not in (*SERVING, Tide.WARM) or model.requests or running(model) or model.wish:
        return
    idle_ms = state.now_ms - max(model.used_ms, model.serving_since_ms)
    worker = worker_of(state, model)
    if idle_ms < _keep_ms(state, model) or state.ledger.is_releasing(worker.name):
        return
    amount_bytes = sum(lease.card_bytes for lease in state.ledger.of(worker.name))
    state.notify(
        released_idle(model.name, f"the model {model.name}", amount_bytes=amount_bytes, idle_ms=idle_ms)
    )
    model.was_pushed = False
    sink(state, model, Level.COLD)


def _release_idle_components(state: State, worker: Worker) -> None:
    if not is_idle(state, worker):
        return
    limit_ms = state.policy.idle_release_ms
    held = [
        lease
        for lease in state.ledger.of(worker.name)
        if "/" in lease.part and lease.phase is LeasePhase.HELD
    ]
    unwanted = [lease for lease in held if is_unwanted(state, lease.part)]
    if unwanted:
        amount_bytes = sum(lease.card_bytes + lease.ram_bytes for lease in unwanted)
        what = " and ".join(dict.fromkeys(lease.part.partition("/")[0] for lease in unwanted))
        state.notify(unloaded(worker.name, what, amount_bytes=amount_bytes))
        release(state, worker, leases=unwanted)
        return
    idle = [lease for lease in held if state.now_ms - lease.used_ms >= limit_ms]
    if idle:
        amount_bytes = sum(lease.card_bytes + lease.ram_bytes for lease in idle)
        state.notify(
            released_idle(worker.name, f"the idle {worker.name}", amount_bytes=amount_bytes, idle_ms=limit_ms)
        )
        release(state, worker, leases=idle)


def is_unwanted(state: State, part: str) -> bool:
    """Whether every model that a component serves is unwanted."""
    component = Component(part.rpartition("/")[2])
    served = [model.name for model in state.house.image_models if model.part(component) == part]
    return bool(served) and all(name in state.unwanted for name in served)


def _turn_ends(state: State, card: str) -> list[int]:
    """When a stage on this card will have run long enough to be stopped for somebody."""
    running_jobs = [job for job in state.jobs.values() if job.run is not None and job.run.incarnation]
    here = [job for job in running_jobs if job.run and state.workers[job.run.worker].card == card]
    return [turn_ends_ms(state, job) for job in here]


def _patience_ends(state: State, model: Model) -> list[int]:
    """When images need not wait for the answers of this model any more."""
    waiting = [state.jobs[name] for name in state.queue[: state.policy.window_count]]
    return [*(answers_until_ms(state, job) for job in waiting), quantum_until_ms(state, model)]


def _set_next_look(state: State, *, is_calm: bool) -> None:
    """Wake up for the next idle release or expected use, and now and then while somebody waits."""
    times = [state.now_ms + state.policy.tend_ms] if not is_calm else []
    for model in state.models.values():
        if model.tide in (*SERVING, Tide.WARM) and not model.requests:
            times.append(max(model.used_ms, model.serving_since_ms) + _keep_ms(state, model))
        if model.tide in SERVING and model.requests:
            times += [*_patience_ends(state, model), *_turn_ends(state, model.card)]
        if model.tide is Tide.PARTIAL and model.was_pushed:
            times.append(model.serving_since_ms + state.policy.quantum_ms)
        expected_ms = model.rhythm.next_ms
        if model.tide in (Tide.COLD, Tide.WARM) and expected_ms not in (None, model.prewarmed_ms):
            assert expected_ms is not None, "checked in the line above"
            times.append(expected_ms - _lead_ms(state, model))
        if model.requests and model.tide in (Tide.COLD, Tide.WARM):
            since_ms = min(request.waiting_since_ms for request in model.requests.values())
            times.append(since_ms + state.policy.chat_wait_max_ms)
            times.append(since_ms + state.policy.answer_wait_max_ms)
            times += _turn_ends(state, model.card)
            if model.wish in HELD_DOWN:
                times.append(since_ms + state.policy.capacity_wait_max_ms)
    for worker in state.workers.values():
        if worker.kind is WorkerKind.IMAGE and not worker.job:
            held = [lease for lease in state.ledger.of(worker.name) if "/" in lease.part]
            times += [lease.used_ms + state.policy.idle_release_ms for lease in held]
    coming = [time for time in times if time > state.now_ms]
    if coming:
        state.set_alarm(Alarm.TEND, TEND, in_ms=min(coming) - state.now_ms)
    else:
        state.clear_alarm(Alarm.TEND, TEND)
