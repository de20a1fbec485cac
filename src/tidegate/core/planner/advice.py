"""Advice: what a smaller quantisation of a component would turn into.

Owns the what-if: the same question is asked again with smaller weights, and the two plans are compared. The
quality of a quantisation is not judged here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidegate.core.planner.choose import choose
from tidegate.core.planner.option import Footprint, StageOption
from tidegate.core.planner.plan import Plan, Refusal
from tidegate.core.planner.question import StageQuestion
from tidegate.core.quantity import size_text
from tidegate.core.stage import COMPONENT_OF, Errand

# Bits per weight of the types that users know, from the block layouts of the GGUF format.
QUARTER_BITS = {"f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q5_0": 22, "q4_K": 18, "q4_0": 18}
SUGGESTED = ("q8_0", "q5_0", "q4_K")


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A quantisation that would change the plan for the better."""

    component: str
    weight_type: str
    weights_bytes: int
    saved_bytes: int
    text: str


def advise(question: StageQuestion, *, weight_type: str) -> tuple[Advice, ...]:
    """Ask again with each smaller type of the stage's own component; name the first that gains something.

    `weight_type` is the type of the weights now. Conversion keeps compute buffers as they are, which is what
    the engines do.
    """
    if isinstance(question.stage, Errand):
        return ()  # Language models shrink by layers, which the plan already weighs.
    now = choose(question)
    component = COMPONENT_OF[question.stage]
    for target in SUGGESTED:
        if QUARTER_BITS[target] >= QUARTER_BITS.get(weight_type, 0):
            continue
        smaller = tuple(_converted(option, frm=weight_type, to=target) for option in question.options)
        then = choose(replace(question, options=smaller, held=None))
        if isinstance(then, Refusal) or not _gains(now, then):
            continue
        before = max(option.footprint.weights_bytes for option in question.options)
        weights_bytes = max(option.footprint.weights_bytes for option in smaller)
        text = f"With the {component.replace('_', ' ')} as {target} ({size_text(weights_bytes)} instead of "
        text += f"{size_text(before)}) {question.stage} would run {then.execution.text()}"
        text += f" and {_spared(now, then)}." if _spared(now, then) else "."
        return (
            Advice(
                component=str(component),
                weight_type=target,
                weights_bytes=weights_bytes,
                saved_bytes=before - weights_bytes,
                text=text,
            ),
        )
    return ()


def _converted(option: StageOption, *, frm: str, to: str) -> StageOption:
    footprint = option.footprint
    weights_bytes = footprint.weights_bytes * QUARTER_BITS[to] // QUARTER_BITS[frm]
    saved_bytes = footprint.weights_bytes - weights_bytes
    smaller = Footprint(
        card_bytes=max(0, footprint.card_bytes - saved_bytes) if footprint.card_bytes else 0,
        ram_bytes=max(0, footprint.ram_bytes - saved_bytes) if footprint.ram_bytes else 0,
        weights_bytes=weights_bytes,
        provenance=footprint.provenance,
    )
    return replace(option, footprint=smaller)


def _gains(now: Plan | Refusal, then: Plan) -> bool:
    return isinstance(now, Refusal) or then.score.rank < now.score.rank


def _spared(now: Plan | Refusal, then: Plan) -> str:
    if isinstance(now, Refusal):
        return "the image becomes possible"
    stay = {release.tenant for release in then.releases}
    names = [release.name for release in now.releases if release.tenant not in stay]
    return f"{', '.join(names)} could stay" if names else ""
