"""Service: who is served by a language model, and how requests end.

Owns admission to the model's slots, silence, cancellation and bounded attempts. Levels are moved by
`tide.py`.
"""

from __future__ import annotations

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.llm.level import HELD_DOWN, SERVING
from tidegate.core.llm.model import Model
from tidegate.core.llm.request import WAITING, Request, RequestPhase
from tidegate.core.llm.tide import running, worker_of
from tidegate.core.state import Alarm, State
from tidegate.core.supervision import ensure, terminate
from tidegate.core.worker import FRONT, WorkerPhase


def submitted(state: State, event: ev.ChatSubmitted) -> None:
    """Take a request in, or refuse it when there is no such model or too many wait."""
    model = state.models.get(event.model)
    known = any(event.request in other.requests for other in state.models.values())
    if known:
        return  # Ids are idempotent: the same request was sent twice.
    if model is None:
        _refuse(
            state, event.request, code="unknown_model", message=f"There is no language model {event.model}."
        )
        return
    if sum(len(other.requests) for other in state.models.values()) >= state.policy.requests_max:
        retry_ms = state.policy.chat_wait_max_ms
        _refuse(
            state,
            event.request,
            code="busy",
            message="Too many requests are waiting.",
            retry_after_ms=retry_ms,
        )
        return
    model.requests[event.request] = Request(
        name=event.request, model=event.model, priority=event.priority, waiting_since_ms=state.now_ms
    )
    model.used_ms = state.now_ms
    model.rhythm.heard(state.now_ms)
    state.tell(event.request, f"waits for {event.model}")


def intended(state: State, event: ev.IntentHeard) -> None:
    """Somebody will ask in a moment."""
    if (model := state.models.get(event.model)) is not None:
        model.rhythm.intent_ms = state.now_ms


def _refuse(state: State, request: str, *, code: str, message: str, retry_after_ms: int = 0) -> None:
    state.sequence += 1
    state.emit(
        ef.FinishChat(
            request=request,
            outcome=ef.Outcome.FAILED,
            sequence=state.sequence,
            code=code,
            message=message,
            retry_after_ms=retry_after_ms,
        )
    )


def find(state: State, request: str) -> tuple[Model, Request] | None:
    """Find a request and its model."""
    for model in state.models.values():
        if request in model.requests:
            return model, model.requests[request]
    return None


def serve(state: State, model: Model) -> None:
    """Fill the free slots of a model that can serve, those who were suspended first, then by arrival."""
    if model.tide not in SERVING:
        return
    waiting = [request for request in model.requests.values() if request.phase in WAITING]
    if not waiting:
        return
    front, worker = state.workers[FRONT], worker_of(state, model)
    ensure(state, front)
    if front.phase is not WorkerPhase.READY or worker.phase is not WorkerPhase.READY:
        return
    waiting.sort(key=lambda request: (request.phase is RequestPhase.QUEUED, -request.priority))
    for request in waiting[: max(0, model.slots_count - running(model))]:
        if request.phase is RequestPhase.QUEUED:
            request.served_since_ms = state.now_ms
        request.to(RequestPhase.RUNNING, state.stories.of(request.name))
        request.heard_ms = state.now_ms
        model.used_ms = state.now_ms
        state.set_alarm(Alarm.CHAT, model.name, in_ms=state.policy.chat_silence_max_ms)
        state.tell(request.name, f"served by {worker.name}")
        state.emit(
            ef.ServeChat(
                request=request.name, model=model.name, worker=worker.name, incarnation=worker.incarnation
            )
        )


def progressed(state: State, event: ev.ChatProgressed) -> None:
    """Tokens are flowing."""
    if (found := find(state, event.request)) is not None:
        found[1].heard_ms = state.now_ms


def silent(state: State, model: Model) -> None:
    """The silence alarm rang: end the worker when a request really had no sign of life for too long."""
    heard = [request.heard_ms for request in model.requests.values() if request.phase is RequestPhase.RUNNING]
    if not heard:
        return
    left_ms = min(heard) + state.policy.chat_silence_max_ms - state.now_ms
    if left_ms > 0:
        state.set_alarm(Alarm.CHAT, model.name, in_ms=left_ms)
        return
    state.tell(model.name, "no token for too long: its worker is ended")
    terminate(state, worker_of(state, model), at_fault=True)


def finished(state: State, event: ev.ChatFinished) -> None:
    """A request came to its end in the worker."""
    found = find(state, event.request)
    if found is None or found[1].phase is not RequestPhase.RUNNING:
        return
    model, request = found
    for worker in (state.workers[FRONT], worker_of(state, model)):
        worker.kills_count = 0  # Of use again.
    if request.served_since_ms >= 0 and not request.is_cancelled:
        model.service_ms = (3 * model.service_ms + state.now_ms - request.served_since_ms) // 4
    end(state, model, request, outcome=ef.Outcome.CANCELLED if request.is_cancelled else ef.Outcome.DONE)


def failed(state: State, event: ev.ChatFailed) -> None:
    """A request failed in a worker that lives: it is evaluated again, within a bound."""
    found = find(state, event.request)
    if found is None or found[1].phase is not RequestPhase.RUNNING:
        return
    request = found[1]
    request.attempts_count += 1
    request.served_since_ms = -1
    request.to(RequestPhase.SUSPENDED, state.stories.of(request.name))
    request.waiting_since_ms = state.now_ms
    state.tell(request.name, f"tried again: {event.failure.text()}")


def cancelled(state: State, event: ev.ChatCancelled) -> None:
    """A client went away."""
    found = find(state, event.request)
    if found is None or found[1].is_cancelled:
        return
    model, request = found
    request.is_cancelled = True
    if request.phase is RequestPhase.RUNNING and model.tide in SERVING:
        worker = worker_of(state, model)
        state.emit(
            ef.DropChat(
                request=request.name, model=model.name, worker=worker.name, incarnation=worker.incarnation
            )
        )


def sweep(state: State, model: Model) -> None:
    """End what need not wait any more: cancelled requests, those that failed too often, and those of a model
    that is held down for too long.
    """
    for request in tuple(model.requests.values()):
        if request.phase not in WAITING:
            continue
        if request.is_cancelled:
            end(state, model, request, outcome=ef.Outcome.CANCELLED)
        elif request.attempts_count >= state.policy.chat_attempts_max:
            text = f"{model.name} failed {request.attempts_count} times with this request."
            end(state, model, request, outcome=ef.Outcome.FAILED, code="worker", message=text)
        elif model.wish in HELD_DOWN and _has_waited(state, request):
            text = f"{model.name} is held at {str(model.wish).upper()}, as somebody asked."
            end(state, model, request, outcome=ef.Outcome.FAILED, code="held", message=text)


def _has_waited(state: State, request: Request) -> bool:
    return state.now_ms - request.waiting_since_ms >= state.policy.capacity_wait_max_ms


def end(
    state: State, model: Model, request: Request, *, outcome: ef.Outcome, code: str = "", message: str = ""
) -> None:
    """End a request and forget it."""
    request.to(RequestPhase.DONE, state.stories.of(request.name))
    del model.requests[request.name]
    model.used_ms = state.now_ms
    state.sequence += 1
    state.tell(request.name, f"{outcome}{': ' + message if message else ''}")
    state.emit(
        ef.FinishChat(
            request=request.name, outcome=outcome, sequence=state.sequence, code=code, message=message
        )
    )
