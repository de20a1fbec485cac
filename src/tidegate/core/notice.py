"""Notices: what the user is told in words when something was moved, tiled, retried or brought back, and why.

Owns the wording, in this one place. Histories of a subject are kept by `story.py`; levels of severity and
where notices are shown are the edge's business.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tidegate.core.image.failure import Attempt
from tidegate.core.planner.plan import Plan
from tidegate.core.quantity import size_text, time_text
from tidegate.core.stage import DecodeMode, Execution, Placement, Stage


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
    reason = f"{plan.stage} needs {_need_text(plan)}"
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
