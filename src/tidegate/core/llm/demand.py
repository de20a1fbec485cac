"""Demand: a language model is wanted. How much of it fits, and who would make room?

Owns the question put to the planner (HOT, or PARTIAL with the most layers that fit) and the binding of a
rise. The movement itself is `tide.py`; whether it is wanted now is decided by `core/schedule.py` and
`core/foresight.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.core.binding import bind, describe, reserved, rooms_now, slot_of, take
from tidegate.core.house import LlmFootprint
from tidegate.core.image.job import ENDED
from tidegate.core.lease import Lease
from tidegate.core.llm.level import Level, Tide
from tidegate.core.llm.model import Model
from tidegate.core.llm.tide import CONTEXT, KV, WEIGHTS, rise, worker_of
from tidegate.core.llm.wish import wished_layers
from tidegate.core.planner.option import Footprint, StageOption
from tidegate.core.planner.plan import Plan
from tidegate.core.planner.question import Concession, Room, StageQuestion
from tidegate.core.stage import Errand, Execution, Placement
from tidegate.core.state import PROCESS, Binding, BindingKind, State

# A layer computed by the CPU costs an answer of some hundred tokens about this much more than on the card.
CPU_LAYER_MS = 300
EIGHTHS = (7, 6, 4, 2)


def question_for(
    state: State, model: Model, *, concessions: tuple[Concession, ...], candidates_max: int
) -> StageQuestion | None:
    """Ask how the model could come up, or None while its footprint is unknown."""
    footprint = state.catalog.llms.get(model.name)
    if footprint is None:
        return None
    worker = worker_of(state, model)
    card, ram = rooms_now(state, model.card, holder=worker.name)
    freed_bytes = sum(concession.card_bytes for concession in concessions)
    options = tuple(_options(state, model, footprint, card=card, freed_bytes=freed_bytes))
    return StageQuestion(
        stage=Errand.SERVE,
        subject=model.name,
        card=card,
        ram=ram,
        options=options,
        concessions=concessions,
        yield_order=state.policy.yield_order,
        candidates_max=candidates_max,
    )


def _options(
    state: State, model: Model, footprint: LlmFootprint, *, card: Room | None, freed_bytes: int
) -> Iterator[StageOption]:
    if model.tide is Tide.WARM:
        layers = model.layers_count
        execution = Execution(Placement.CARD, layers_count=0 if layers == footprint.layers_count else layers)
        if not model.card:
            execution = Execution(Placement.CPU)
        card_bytes = footprint.on_card(layers)[1]
        yield StageOption(
            execution,
            Footprint(card_bytes, 0),
            run_ms=0,
            load_ms=state.catalog.level_cost_ms(model.name, "returning"),
        )
        return
    for layers in _layer_counts(state, model, footprint, card=card, freed_bytes=freed_bytes):
        weights, kv = footprint.on_card(layers)
        context = state.ledger.pools[model.card].descriptor.context_bytes if model.card and layers else 0
        ram_bytes = footprint.in_ram(layers) + state.policy.process_ram_bytes
        execution = Execution(Placement.CPU)
        if layers:
            execution = Execution(
                Placement.CARD, layers_count=0 if layers == footprint.layers_count else layers
            )
        yield StageOption(
            execution,
            Footprint(weights + kv + context if layers else 0, ram_bytes, weights),
            run_ms=(footprint.layers_count - layers) * CPU_LAYER_MS,
            load_ms=state.catalog.level_cost_ms(model.name, "rising")
            * max(1, layers)
            // max(1, footprint.layers_count),
        )


def _layer_counts(
    state: State, model: Model, footprint: LlmFootprint, *, card: Room | None, freed_bytes: int
) -> Iterator[int]:
    """All layers, the most that fit with and without others yielding, and parts; less after failures."""
    total = footprint.layers_count
    if card is None:
        yield 0
        return
    if model.wish is Level.PARTIAL:
        yield wished_layers(state, model)
        return
    context = state.ledger.pools[model.card].descriptor.context_bytes
    # The last attempt asks nothing of the card.
    steps = max(1, state.policy.level_attempts_max - 1)
    most = total * max(0, steps - model.attempts_count) // steps
    exact = [
        _most_layers(footprint, usable - context)
        for usable in (card.usable_bytes + freed_bytes, card.usable_bytes)
    ]
    ever = _most_layers(footprint, state.ledger.pools[model.card].emptied_bytes - context)
    # Fewer than half of the layers are hardly faster than waiting, unless the card can never hold more.
    least = min(total // 2, ever, most)
    counts = {min(count, most) for count in (total, *exact, *(total * part // 8 for part in EIGHTHS), least)}
    yield from (count for count in sorted(counts, reverse=True) if count >= least)


def _most_layers(footprint: LlmFootprint, usable_bytes: int) -> int:
    # Every count is looked at: compute buffers may shrink when the last layer comes to the card.
    counts = range(footprint.layers_count, 0, -1)
    return next((count for count in counts if sum(footprint.on_card(count)) <= usable_bytes), 0)


def bind_rise(state: State, model: Model, plan: Plan) -> None:
    """Reserve what the plan needs and ask those who yield."""
    worker = worker_of(state, model)
    footprint = state.catalog.llms[model.name]
    layers = _layers_of(plan, footprint, model)
    level = Level.HOT if layers == footprint.layers_count or not model.card else Level.PARTIAL
    others = (other for other in state.models.values() if other is not model and other.card == model.card)
    model.was_contended = any(job.phase not in ENDED for job in state.jobs.values())
    model.was_contended = model.was_contended or any(other.requests for other in others)
    state.tell(model.name, f"is wanted: {describe(plan)}")
    bind(
        state,
        Binding(
            kind=BindingKind.RISE,
            slot=slot_of(model.card, worker.name),
            subject=model.name,
            worker=worker.name,
            plan=plan,
            leases=tuple(lease.number for lease in _reserve(state, model, layers=layers)),
            level=level,
            layers_count=layers,
            since_ms=state.now_ms,
        ),
    )


def _layers_of(plan: Plan, footprint: LlmFootprint, model: Model) -> int:
    if model.tide is Tide.WARM:
        return model.layers_count
    if plan.execution.placement is Placement.CPU:
        return 0
    return plan.execution.layers_count or footprint.layers_count


def _reserve(state: State, model: Model, *, layers: int) -> list[Lease]:
    worker = worker_of(state, model)
    footprint = state.catalog.llms[model.name]
    weights, kv = footprint.on_card(layers)
    wanted: list[tuple[str, int, int]] = [(KV, kv, 0)]
    if model.tide is Tide.COLD:
        context = state.ledger.pools[model.card].descriptor.context_bytes if model.card and layers else 0
        wanted += [
            (PROCESS, 0, state.policy.process_ram_bytes),
            (CONTEXT, context, 0),
            (WEIGHTS, weights, footprint.in_ram(layers)),
        ]
    return reserved(state, worker, wanted)


def grant_rise(state: State, binding: Binding) -> None:
    """The bytes are there: up it goes."""
    model = state.models[binding.subject]
    worker = worker_of(state, model)
    leases = [lease for lease in state.ledger.of(worker.name) if lease.number in binding.leases]
    process = next((lease for lease in leases if lease.part == PROCESS), None)
    if model.tide is Tide.WARM:
        # Its worker is told a sum at once, in which what it takes from its own arena must not count twice.
        take(state, binding, incarnation=worker.incarnation)
        rise(state, model, binding, process=process)
        return
    rise(state, model, binding, process=process)
    take(state, binding, incarnation=worker.incarnation)
