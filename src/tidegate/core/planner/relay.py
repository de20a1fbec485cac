"""Relays: the whole image job planned up front, to know whether there is any way to finish.

Owns RelayQuestion and plan_image. It runs the very same `choose` for each stage and carries along what
earlier stages leave behind; each stage is planned again at its boundary with what is really free then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tidegate.core.planner.choose import plan_stage
from tidegate.core.planner.option import StageOption
from tidegate.core.planner.plan import Plan
from tidegate.core.planner.question import YIELD_ORDER, Concession, Held, Room, StageQuestion, YieldClass
from tidegate.core.stage import COMPONENT_OF, Component, Execution, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayQuestion:
    """Can this image be made at all? `options` holds, in order, each stage still to run."""

    subject: str
    card: Room | None
    ram: Room
    options: Mapping[Stage, tuple[StageOption, ...]]
    concessions: tuple[Concession, ...] = ()
    yield_order: tuple[YieldClass, ...] = YIELD_ORDER


@dataclass(frozen=True, slots=True)
class _Loaded:
    execution: Execution
    option: StageOption

    @property
    def card_bytes(self) -> int:
        # Between stages only the weights stay; compute buffers go back when the stage ends.
        return min(self.option.footprint.card_bytes, self.option.footprint.weights_bytes)

    @property
    def ram_bytes(self) -> int:
        return min(self.option.footprint.ram_bytes, self.option.footprint.weights_bytes)


def plan_image(question: RelayQuestion) -> tuple[Plan, ...]:
    """Plan every stage in order, or raise CapacityError for the first that cannot run."""
    loaded: dict[Component, _Loaded] = {}
    card, ram = question.card, question.ram
    waiting = list(question.concessions)
    plans: list[Plan] = []
    for stage, options in question.options.items():
        component = COMPONENT_OF[stage]
        plan = plan_stage(
            StageQuestion(
                stage=stage,
                subject=question.subject,
                card=card,
                ram=ram,
                options=options,
                held=held_of(loaded[component]) if component in loaded else None,
                concessions=(
                    *(_finished(name, kept) for name, kept in loaded.items() if name != component),
                    *waiting,
                ),
                yield_order=question.yield_order,
            )
        )
        plans.append(plan)
        card_delta = sum(release.card_bytes for release in plan.releases)
        ram_delta = sum(release.ram_bytes for release in plan.releases)
        gone = {release.tenant for release in plan.releases}
        waiting = [concession for concession in waiting if concession.tenant not in gone]
        before = loaded.pop(component, None)
        loaded = {name: kept for name, kept in loaded.items() if _tenant(name) not in gone}
        after = loaded[component] = _Loaded(plan.execution, plan.option)
        card_delta += (before.card_bytes if before else 0) - after.card_bytes
        ram_delta += (before.ram_bytes if before else 0) - after.ram_bytes
        card = replace(card, free_bytes=card.free_bytes + card_delta) if card else None
        ram = replace(ram, free_bytes=ram.free_bytes + ram_delta)
    return tuple(plans)


def held_of(kept: _Loaded) -> Held:
    """Describe a component that stays loaded for the question about its next stage."""
    return Held(execution=kept.execution, card_bytes=kept.card_bytes, ram_bytes=kept.ram_bytes)


def _tenant(component: Component) -> str:
    return f"own/{component}"


def _finished(component: Component, kept: _Loaded) -> Concession:
    return Concession(
        tenant=_tenant(component),
        name=f"the {component.replace('_', ' ')} of this job",
        yields=YieldClass.OWN_FINISHED,
        card_bytes=kept.card_bytes,
        ram_bytes=kept.ram_bytes,
        return_ms=kept.option.load_ms,
        component=component,
    )
