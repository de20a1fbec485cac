"""Notices: what the user is told in words when something was moved, tiled, retried or brought back, and why.

Owns the wording, in this one place. Histories of a subject are kept by `story.py`; levels of severity and
where notices are shown are the edge's business.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tidegate.core.image.failure import Attempt
from tidegate.core.llm.level import HELD_DOWN
from tidegate.core.planner.plan import Plan
from tidegate.core.quantity import size_text, time_text
from tidegate.core.stage import DecodeMode, Errand, Execution, Placement, Stage


class NoticeKind(enum.StrEnum):
    """What happened, for machines."""

    OFFLOADED = "offloaded"
    TILED = "tiled"
    STREAMED = "streamed"
    CPU = "cpu"
    RETRIED = "retried"
    BLANK = "blank"
    SUSPENDED = "suspended"
    RETURNED = "returned"
    PREWARMED = "prewarmed"
    RELEASED = "released"
    DRIFTED = "drifted"
    QUARANTINED = "quarantined"
    BOUND = "bound"
    ESCALATED = "escalated"
    HELD = "held"  # Down, so that requests wait.
    WISHED = "wished"  # Up, or where the planner brings it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing the user should know; `text` is complete, the rest is for machines."""

    kind: NoticeKind
    subject: str
    text: str
    amount_bytes: int = 0
    duration_ms: int = 0
    reason: str = ""


def notices_of(plan: Plan) -> tuple[Notice, ...]:
    """Word what a plan does to anybody; a plan that bothers nobody gives none."""
    # A model and a guest are known by their names, a stage by what it does.
    who = plan.subject if isinstance(plan.stage, Errand) else plan.stage
    reason = f"{who} needs {_need_text(plan)}"
    told = [
        Notice(
            kind=NoticeKind.OFFLOADED,
            subject=release.tenant,
            text=f"{_capital(release.name)} gives up {size_text(release.card_bytes or release.ram_bytes)}, "
            f"because {reason}{_return_text(release.expected_return_ms)}.",
            amount_bytes=release.card_bytes or release.ram_bytes,
            duration_ms=release.free_ms,
            reason=reason,
        )
        for release in plan.releases
    ]
    return (*told, *_execution_notices(plan))


def retried(subject: str, stage: Stage, *, attempt: Attempt, then: Execution) -> Notice:
    """Word that a stage failed and how it is tried again."""
    reason = f"{attempt.failure.text()} {attempt.execution.text()}"
    return Notice(
        kind=NoticeKind.RETRIED,
        subject=subject,
        text=f"{_capital(stage)} is tried again {then.text()}, because {reason}. Finished work is kept.",
        reason=reason,
    )


def blank_delivered(subject: str) -> Notice:
    """Word that an image of one colour was made twice and is delivered."""
    text = "The image is of one colour. It was made twice in different ways with the same result."
    return Notice(kind=NoticeKind.BLANK, subject=subject, text=text, reason="blank twice")


def made_again(subject: str, stages: tuple[Stage, ...]) -> Notice:
    """Word that saved work is gone and is done again."""
    what = " and ".join(stages)
    text = f"What {what} had saved is gone or damaged and is made again. The image is the same, only later."
    return Notice(kind=NoticeKind.RETRIED, subject=subject, text=text, reason="saved work was lost")


def _execution_notices(plan: Plan) -> tuple[Notice, ...]:
    execution, score = plan.execution, plan.score
    better = plan.rejected[0].text() if plan.rejected else ""
    reason = f"not {better}" if better else "it is the cheapest way"
    told: list[tuple[NoticeKind, str]] = []
    if execution.mode is DecodeMode.TILED:
        told.append((NoticeKind.TILED, f"runs {execution.text()}"))
    elif execution.placement is Placement.STREAM:
        told.append((NoticeKind.STREAMED, f"runs {execution.text()}"))
    if execution.placement is Placement.CPU and plan.card is not None:
        told.append((NoticeKind.CPU, f"runs {execution.text()}"))
    footprint = plan.option.footprint
    return tuple(
        Notice(
            kind=kind,
            subject=plan.subject,
            text=f"{_capital(plan.stage)} {words}, about {time_text(score.run_ms)}: {reason}.",
            amount_bytes=footprint.card_bytes or footprint.ram_bytes,
            duration_ms=score.run_ms,
            reason=reason,
        )
        for kind, words in told
    )


def _need_text(plan: Plan) -> str:
    footprint = plan.option.footprint
    if footprint.card_bytes:
        return f"{size_text(footprint.card_bytes)} on the card"
    return f"{size_text(footprint.ram_bytes)} of RAM"


def _return_text(expected_return_ms: int) -> str:
    return (
        f"; bringing it back is expected to cost {time_text(expected_return_ms)}"
        if expected_return_ms
        else ""
    )


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def escalated(worker: str, step: str) -> Notice:
    """Word that a worker did not obey and what is done about it."""
    text = f"The worker {worker} did not give memory back or end in time and is {step}. Saved work is kept."
    return Notice(
        kind=NoticeKind.ESCALATED, subject=worker, text=text, reason="memory was not seen to be free"
    )


def quarantined(worker: str, *, rest_ms: int) -> Notice:
    """Word that a worker failed too often."""
    text = f"The worker {worker} failed several times in a row and rests for {time_text(rest_ms)}."
    return Notice(
        kind=NoticeKind.QUARANTINED,
        subject=worker,
        text=text,
        duration_ms=rest_ms,
        reason="repeated failures",
    )


def drifted(subject: str, pool: str, *, predicted_bytes: int, observed_bytes: int) -> Notice:
    """Word that a stage took more than predicted."""
    drift_bytes = observed_bytes - predicted_bytes
    text = f"{_capital(subject)} took {size_text(drift_bytes)} more on {pool} than predicted "
    text += f"({size_text(observed_bytes)} instead of {size_text(predicted_bytes)}); the headroom is widened."
    return Notice(
        kind=NoticeKind.DRIFTED,
        subject=subject,
        text=text,
        amount_bytes=drift_bytes,
        reason="observed above predicted",
    )


def suspended(model: str, *, requests_count: int, state_bytes: int) -> Notice:
    """Word that a language model's streams pause."""
    text = f"{requests_count} conversation(s) with {model} pause to make room; {size_text(state_bytes)} kept."
    return Notice(
        kind=NoticeKind.SUSPENDED,
        subject=model,
        text=text,
        amount_bytes=state_bytes,
        reason="somebody needs its memory",
    )


def returned(model: str, *, level: str, layers_count: int, took_ms: int) -> Notice:
    """Word that a language model is back on the card."""
    with_layers = f" with {layers_count} layers on the card" if level == "partial" else ""
    text = f"{model} is back at {level.upper()}{with_layers} after {time_text(took_ms)}."
    return Notice(
        kind=NoticeKind.RETURNED, subject=model, text=text, duration_ms=took_ms, reason="there is room"
    )


def held(model: str, *, level: str) -> Notice:
    """Word that somebody wants a language model at a level, or not any more ("")."""
    text = f"{model} is held at {level.upper()}, as somebody asked."
    return Notice(
        kind=NoticeKind.HELD if level in HELD_DOWN else NoticeKind.WISHED,
        subject=model,
        text=text if level else f"{model} is not held at a level any more; the planner decides.",
        reason="somebody asked",
    )


def awaited(model: str) -> Notice:
    """Word that a language model is brought back because somebody begins to write."""
    text = f"{model} is brought back, because somebody is about to ask it something."
    return Notice(kind=NoticeKind.PREWARMED, subject=model, text=text, reason="intent")


def prewarmed(model: str, *, in_ms: int) -> Notice:
    """Word that a language model is brought back before it is asked for."""
    text = f"{model} is brought back, because by its rhythm it is wanted in about {time_text(max(0, in_ms))}."
    return Notice(
        kind=NoticeKind.PREWARMED, subject=model, text=text, duration_ms=max(0, in_ms), reason="rhythm"
    )


def released_idle(subject: str, name: str, *, amount_bytes: int, idle_ms: int) -> Notice:
    """Word that something idle was released."""
    text = f"{_capital(name)} gives up {size_text(amount_bytes)} after {time_text(idle_ms)} without use."
    return Notice(
        kind=NoticeKind.RELEASED,
        subject=subject,
        text=text,
        amount_bytes=amount_bytes,
        duration_ms=idle_ms,
        reason="idle",
    )


def unloaded(subject: str, name: str, *, amount_bytes: int) -> Notice:
    """Word that a model gave its memory back because the user wanted that."""
    text = f"{size_text(amount_bytes)} of {name} are given back, as you wished."
    return Notice(
        kind=NoticeKind.RELEASED, subject=subject, text=text, amount_bytes=amount_bytes, reason="wished"
    )


def patient(job: str, stage: str, *, names: tuple[str, ...]) -> Notice:
    """Word that a stage lets somebody finish first."""
    who = " and ".join(names)
    text = (
        f"{_capital(stage)} lets {who} finish first: that costs less than to stop it or to compute beside it."
    )
    return Notice(kind=NoticeKind.HELD, subject=job, text=text, reason=f"{who} is busy")


def yielded(job: str, *, to: str, waited_ms: int) -> Notice:
    """Word that a sampling image lets somebody pass, who waits, or who answers already (`waited_ms` 0)."""
    if waited_ms:
        text, reason = f"Sampling pauses for {to}, which has waited {time_text(waited_ms)}", f"{to} waited"
    else:
        text, reason = (
            f"Sampling pauses while {to} answers, as both at once would take longer",
            f"{to} answers",
        )
    return Notice(
        kind=NoticeKind.SUSPENDED,
        subject=job,
        text=f"{text}; it goes on where it stopped.",
        duration_ms=waited_ms,
        reason=reason,
    )


def bound_reached(subject: str, what: str) -> Notice:
    """Word that a limit was reached."""
    return Notice(kind=NoticeKind.BOUND, subject=subject, text=f"{_capital(what)}.", reason="limit")


def relieved(name: str, pool: str, *, amount_bytes: int) -> Notice:
    """Word that somebody idle gave way to foreign applications."""
    text = f"{_capital(name)} gives up {size_text(amount_bytes)}, because other applications need {pool}."
    reason = "other applications took more than was free"
    return Notice(
        kind=NoticeKind.OFFLOADED, subject=name, text=text, amount_bytes=amount_bytes, reason=reason
    )
