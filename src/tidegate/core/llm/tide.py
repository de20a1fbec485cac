"""Tide: moving a language model between its levels, safely for the requests in flight.

Owns the movements: sink (HOT or PARTIAL over WARM to COLD), rise, and what the loss of the worker means.
Whether to move is decided by the planner's callers; requests are served by `service.py`; the table is in
`level.py`.
"""

from __future__ import annotations

from tidegate.core.effects import SetLevel
from tidegate.core.events import LevelFailed, LevelReached
from tidegate.core.house import Sight
from tidegate.core.lease import Lease, LeasePhase
from tidegate.core.llm.level import SERVING, Level, Tide
from tidegate.core.llm.model import Model
from tidegate.core.llm.request import RequestPhase
from tidegate.core.notice import returned, suspended
from tidegate.core.state import Alarm, Binding, State
from tidegate.core.supervision import await_release, drained, release, start, terminate
from tidegate.core.worker import FRONT, Worker, WorkerPhase, llm_worker

CONTEXT, WEIGHTS, KV = "context", "weights", "kv"


def state_part(model: str) -> str:
    """Name the front's lease of a model's saved conversation state."""
    return f"state/{model}"


def worker_of(state: State, model: Model) -> Worker:
    """The worker of a model."""
    return state.workers[llm_worker(model.name)]


def running(model: Model) -> int:
    """How many requests are being served."""
    return sum(request.phase is RequestPhase.RUNNING for request in model.requests.values())


def saved_state(state: State, model: Model) -> Lease | None:
    """The lease of the saved state, if there is one."""
    return state.ledger.find(FRONT, state_part(model.name))


# --- down ---


def sink(state: State, model: Model, aim: Level) -> None:
    """Lower a model to WARM or COLD; requests in flight are suspended at a token boundary and saved."""
    model.aim = aim
    if model.tide in SERVING and (aim is Level.WARM or _may_save(state, model)):
        _ebb(state, model)
    elif model.tide in (*SERVING, Tide.WARM):
        _drown(state, model)


def _may_save(state: State, model: Model) -> bool:
    """Saving needs a front to keep the state and RAM to put it in; else histories are evaluated again."""
    footprint = state.catalog.llms[model.name]
    if state.workers[FRONT].phase is not WorkerPhase.READY or _is_unified(state, model):
        return False
    return state.ledger.room("", card_bytes=0, ram_bytes=footprint.state_bytes)


def _is_unified(state: State, model: Model) -> bool:
    return bool(model.card) and state.ledger.pools[model.card].descriptor.unified


def _ebb(state: State, model: Model) -> None:
    worker = worker_of(state, model)
    model.to(Tide.EBBING, state.stories.of(model.name))
    front = state.workers[FRONT]
    state_bytes = state.catalog.llms[model.name].state_bytes if _may_save(state, model) else 0
    if state_bytes and saved_state(state, model) is None:
        lease = state.ledger.reserve(
            FRONT,
            state_part(model.name),
            incarnation=front.incarnation,
            card="",
            card_bytes=0,
            ram_bytes=state_bytes,
            at_ms=state.now_ms,
        )
        state.ledger.grant(lease, incarnation=front.incarnation, at_ms=state.now_ms)
    kv = state.ledger.find(worker.name, KV)
    if kv is not None:
        state.ledger.ask(kv)
    state.set_alarm(Alarm.LEVEL, worker.name, in_ms=state.policy.level_wait_max_ms)
    state.tell(model.name, f"ebbing to {model.aim}")
    state.emit(
        SetLevel(
            model=model.name,
            worker=worker.name,
            incarnation=worker.incarnation,
            level=Level.WARM,
            layers_count=model.layers_count,
            card_bytes=0,
            ram_bytes=state_bytes,
        )
    )


def _drown(state: State, model: Model) -> None:
    worker = worker_of(state, model)
    model.to(Tide.SINKING, state.stories.of(model.name))
    state.tell(model.name, "sinking to cold")
    terminate(state, worker)


def _warm(state: State, model: Model, event: LevelReached) -> None:
    worker = worker_of(state, model)
    model.to(Tide.WARM, state.stories.of(model.name))
    for lease in state.ledger.of(worker.name):
        if lease.part == KV and lease.phase is LeasePhase.RELEASING:
            state.ledger.claim(lease, at_ms=state.now_ms)
    if state.ledger.is_releasing(worker.name):
        await_release(state, worker)
    kept = saved_state(state, model)
    if kept is not None:
        state.ledger.hold(kept, at_ms=state.now_ms)
        # Reserved was what full contexts take; most conversations are far shorter.
        state.ledger.shrink(kept, ram_bytes=min(kept.ram_bytes, event.state_bytes))
    paused_count = suspend_running(state, model)
    if paused_count:
        state.notify(suspended(model.name, requests_count=paused_count, state_bytes=event.state_bytes))
    state.observe(worker.card)
    if model.aim is Level.COLD:
        _drown(state, model)


def suspend_running(state: State, model: Model) -> int:
    """Note that nothing is being served any more; return how many requests were."""
    paused = [request for request in model.requests.values() if request.phase is RequestPhase.RUNNING]
    for request in paused:
        request.to(RequestPhase.SUSPENDED, state.stories.of(request.name))
        request.waiting_since_ms = state.now_ms
        request.served_since_ms = -1
        state.tell(request.name, "suspended at a token boundary")
    state.clear_alarm(Alarm.CHAT, model.name)
    return len(paused)


# --- up ---


def rise(state: State, model: Model, binding: Binding, *, process: Lease | None) -> None:
    """Bring a model up after its leases were granted: a new process from COLD, a new context from WARM."""
    worker = worker_of(state, model)
    assert binding.level is not None, "a rise has a level"
    model.aim = binding.level
    model.layers_count = binding.layers_count
    if model.tide is Tide.WARM:
        model.to(Tide.RETURNING, state.stories.of(model.name))
        set_level(state, model)
        return
    model.to(Tide.RISING, state.stories.of(model.name))
    start(state, worker, process=process)


def set_level(state: State, model: Model) -> None:
    """Tell a ready worker which level it shall reach."""
    worker = worker_of(state, model)
    leases = state.ledger.of(worker.name)
    state.set_alarm(Alarm.LEVEL, worker.name, in_ms=state.policy.level_wait_max_ms)
    state.tell(model.name, f"rising to {model.aim} with {model.layers_count} layers on the card")
    state.emit(
        SetLevel(
            model=model.name,
            worker=worker.name,
            incarnation=worker.incarnation,
            level=model.aim,
            layers_count=model.layers_count,
            card_bytes=sum(lease.card_bytes for lease in leases),
            ram_bytes=sum(lease.ram_bytes for lease in leases),
        )
    )


def level_reached(state: State, event: LevelReached) -> None:
    """The worker says it is there."""
    model = state.models[event.model]
    worker = worker_of(state, model)
    if model.tide not in (Tide.EBBING, Tide.RISING, Tide.RETURNING):
        return  # It was told to end meanwhile, and its end is what counts.
    state.clear_alarm(Alarm.LEVEL, worker.name)
    state.catalog.learn_level_ms(model.name, model.tide, took_ms=event.took_ms)
    if model.tide is Tide.EBBING:
        _warm(state, model, event)
        return
    model.to(Tide.PARTIAL if model.aim is Level.PARTIAL else Tide.HOT, state.stories.of(model.name))
    model.serving_since_ms = state.now_ms
    model.attempts_count = 0
    for lease in state.ledger.of(worker.name):
        state.ledger.hold(lease, at_ms=state.now_ms)
    if model.card and state.ledger.pools[model.card].sight is Sight.PER_CARD:
        state.observe(model.card)  # What was loaded looked foreign until now.
    drop_state(state, model)
    was_pushed = model.was_pushed
    # Whoever came up partly because there was no more room goes on as soon as there is.
    model.was_pushed = model.aim is Level.PARTIAL and model.wish is not Level.PARTIAL
    if was_pushed:
        text = returned(
            model.name, level=str(model.aim), layers_count=model.layers_count, took_ms=event.took_ms
        )
        state.notify(text)


def level_failed(state: State, event: LevelFailed) -> None:
    """The worker could not get there: it ends, and the next attempt asks for less."""
    model = state.models[event.model]
    state.tell(model.name, f"{model.tide} failed: {event.failure.text()}")
    terminate(state, worker_of(state, model), at_fault=True)


def drop_state(state: State, model: Model) -> None:
    """The saved state was restored: the front frees it by itself."""
    kept = saved_state(state, model)
    if kept is not None:
        state.ledger.claim(kept, at_ms=state.now_ms)
        state.observe()


def yield_state(state: State, model: Model) -> None:
    """The saved state is not worth its RAM: the front, which knows nothing of that, is asked to free it."""
    kept, front = saved_state(state, model), state.workers[FRONT]
    if kept is None:
        return
    if front.phase is WorkerPhase.READY:
        release(state, front, leases=[kept])
    else:
        state.ledger.ask(kept)  # It goes with the process.


def lost(state: State, model: Model, *, failed: bool) -> None:
    """The worker ended, whoever ended it: the model is COLD, requests in flight will be evaluated again."""
    worker = worker_of(state, model)
    state.clear_alarm(Alarm.LEVEL, worker.name)
    drained(state, worker)
    was_serving = model.tide in SERVING
    if failed and not was_serving:
        model.attempts_count += 1
    if model.tide is not Tide.COLD:
        model.to(Tide.COLD, state.stories.of(model.name))
    model.layers_count = 0
    model.aim = Level.COLD
    for request in model.requests.values():
        if failed and was_serving and request.phase is RequestPhase.RUNNING:
            request.attempts_count += 1
    suspend_running(state, model)
    kept = saved_state(state, model)
    if kept is not None and kept.phase is LeasePhase.GRANTED:
        state.ledger.claim(kept, at_ms=state.now_ms)  # Saving was under way and is void.
