"""Advice: what a smaller quantisation of a component would turn into.

Owns the what-if: the same question is asked again with smaller weights, and the two plans are compared; and
what those around would have to save. The quality of a quantisation is not judged here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidegate.core.planner.choose import choose
from tidegate.core.planner.filters import needed_bytes
from tidegate.core.planner.option import Footprint, StageOption
from tidegate.core.planner.plan import Plan, Refusal
from tidegate.core.planner.question import StageQuestion, YieldClass
from tidegate.core.quantity import size_text
from tidegate.core.stage import COMPONENT_OF, Errand

# Bits per weight of the types that users know, from the block layouts of the GGUF format.
QUARTER_BITS = {"f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q5_0": 22, "q4_K": 18, "q4_0": 18}
# Others than this job's own, who would have to yield.
NEIGHBOURS = (YieldClass.LLM_KV, YieldClass.LLM_WEIGHTS, YieldClass.IDLE_IMAGE)
QUANTISED_MAX_PERCENT = 70  # From f16 to q4_K; more nobody can save.
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


def advise_neighbours(question: StageQuestion) -> tuple[str, ...]:
    """Say of everybody else who would have to yield how much smaller it had to be to stay where it is.

    How its weights are quantised now is not known here, so the bytes are named; a step from f16 to q8_0, or
    from q8_0 to q4_K, takes about half.
    """
    plan = choose(question)
    if isinstance(plan, Refusal):
        return ()
    told = []
    short_bytes, _ = needed_bytes(question, plan.option)
    for release in plan.releases:
        if release.yields not in NEIGHBOURS or release.after or release.card_bytes <= 0:
            continue
        # Whoever cannot go before it would stay with it.
        own = [other for other in plan.releases if release.tenant in (other.tenant, other.after)]
        held_bytes = sum(other.card_bytes for other in own)
        freed_bytes = sum(other.card_bytes for other in plan.releases if other not in own)
        missing_bytes = short_bytes - freed_bytes
        if 0 < missing_bytes <= held_bytes * QUANTISED_MAX_PERCENT // 100:
            text = (
                f"If {own[-1].name} were {size_text(missing_bytes)} smaller on the card, by quantisation or "
            )
            told.append(f"{text}a shorter context, it could stay while {question.stage} runs.")
    return tuple(told)


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
