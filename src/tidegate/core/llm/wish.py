"""Wishes: a language model that somebody wants held at a level, whatever the planner would do.

    hot, partial   it rises when nobody waits, and yields only where an image could not be made otherwise
    warm, cold     it is lowered at once; its requests wait until the wish is taken back, within a bound
    none           the planner decides again
    unwanted       it is lowered once, unless it is asked something, and comes back when it is

Owns what a wish means, and how it is given up. Movements are `tide.py`'s, when a model rises by itself is
decided in `core/foresight.py`, what a pinned model is asked to give up in `core/yielding.py`.
"""

from __future__ import annotations

from tidegate.core.events import LevelWished
from tidegate.core.llm.level import SERVING, Level, Tide
from tidegate.core.llm.model import Model
from tidegate.core.llm.tide import sink, worker_of
from tidegate.core.notice import bound_reached, held
from tidegate.core.state import State
from tidegate.core.worker import WorkerPhase


def wished(state: State, event: LevelWished) -> None:
    """Take in a wish, or that it was taken back."""
    model = state.models.get(event.model)
    if model is None or (model.wish, model.wish_layers_count) == (event.level, event.layers_count):
        return
    model.wish, model.wish_layers_count = event.level, event.layers_count
    model.attempts_count = 0
    if event.level is None:
        # What it was before the wish nobody knows; it comes back when there is room, as after yielding.
        model.was_pushed = model.tide in (Tide.COLD, Tide.WARM, Tide.PARTIAL)
        model.used_ms = state.now_ms
    state.notify(held(model.name, level="" if event.level is None else str(event.level)))


def is_wished_up(model: Model) -> bool:
    """Whether it shall rise without being asked anything."""
    if model.wish is Level.WARM:
        return model.tide is Tide.COLD
    return model.wish in (Level.HOT, Level.PARTIAL)


def is_pinned(model: Model) -> bool:
    """Whether somebody wants to keep on the card what it has there."""
    return model.wish in (Level.HOT, Level.PARTIAL, Level.WARM)


def lower(state: State, model: Model) -> None:
    """Bring it down when it stands higher, or otherwise, than it is wished, or is not wanted at all."""
    _forget_unwanted(state, model)
    worker = worker_of(state, model)
    if worker.phase is not WorkerPhase.READY or state.ledger.is_releasing(worker.name):
        return
    is_up = model.tide in (*SERVING, Tide.WARM)
    if is_up and (model.wish is Level.COLD or model.name in state.unwanted):
        sink(state, model, Level.COLD)
    elif model.wish is Level.WARM and model.tide in SERVING:
        sink(state, model, Level.WARM)
    elif model.wish is Level.PARTIAL and is_up and model.layers_count != wished_layers(state, model):
        sink(state, model, Level.COLD)


def _forget_unwanted(state: State, model: Model) -> None:
    """Whose memory somebody wants back is not wanted until it is down, or is asked something."""
    if model.name not in state.unwanted:
        return
    model.wish, model.was_pushed = None, False
    if model.tide is Tide.COLD or model.requests:
        state.unwanted.remove(model.name)


def wished_layers(state: State, model: Model) -> int:
    """How many layers a wish for PARTIAL means; the model may have fewer than were named."""
    return min(model.wish_layers_count, state.catalog.llms[model.name].layers_count)


def give_up(state: State, model: Model, *, why: str) -> None:
    """It cannot be had: let the planner decide again, rather than try for ever."""
    if model.wish is not None:
        model.wish = None
        state.notify(bound_reached(model.name, f"{model.name} is not held at its level any more: {why}"))
