"""Filters: may this candidate run at all? Each filter is one small function with one reason for refusing.

Owns Candidate, Rejection and the list FILTERS. Filters only count bytes and obey the recovery ladder; which
of the surviving candidates is best is decided in `scores.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from tidegate.core.planner.option import StageOption
from tidegate.core.planner.question import Concession, StageQuestion
from tidegate.core.quantity import size_text
from tidegate.core.stage import Errand, Execution, Placement


class Reason(enum.StrEnum):
    """Why a candidate was refused."""

    RUNG = "rung"
    NO_CARD = "no_card"
    CARD_BYTES = "card_bytes"
    RAM_BYTES = "ram_bytes"
    ALLOCATION = "allocation"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An option together with who would make room for it, and its place in the order of preference."""

    option: StageOption
    releases: tuple[Concession, ...]
    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A candidate that may not run, with the bytes it needed and the bytes there could be."""

    execution: Execution
    reason: Reason
    needed_bytes: int = 0
    available_bytes: int = 0
    detail: str = ""

    def text(self) -> str:
        """Word the refusal for a user."""
        what = self.execution.text()
        match self.reason:
            case Reason.RUNG:
                return f"{what}: {self.detail}"
            case Reason.NO_CARD:
                return f"{what}: there is no card"
            case Reason.ALLOCATION:
                piece, most = size_text(self.needed_bytes), size_text(self.available_bytes)
                return f"{what}: needs {piece} in one piece, and the card gives at most {most} in one"
            case Reason.CARD_BYTES:
                where = "card memory"
            case Reason.RAM_BYTES:
                where = "RAM"
            case _:
                assert_never(self.reason)
        needed, available = size_text(self.needed_bytes), size_text(self.available_bytes)
        return f"{what}: needs {needed} of {where}, at most {available} can be made free"


def keeps_held(question: StageQuestion, option: StageOption) -> bool:
    """Whether the component may stay as it is loaded now, so that its bytes need not be found again."""
    held = question.held
    if held is None or held.execution.placement is not option.execution.placement:
        return False
    return held.execution.budget_bytes == option.execution.budget_bytes


def needed_bytes(question: StageQuestion, option: StageOption) -> tuple[int, int]:
    """Card and RAM bytes that must become free beyond what is free now; not positive: it fits as it is."""
    held_card, held_ram = (question.held.card_bytes, question.held.ram_bytes) if question.held else (0, 0)
    # Kept or dropped, the bytes that the component holds now count as ours: loaded twice it never is.
    card_usable = question.card.usable_bytes if question.card else 0
    card_short = option.footprint.card_bytes - held_card - card_usable
    ram_short = option.footprint.ram_bytes - held_ram - question.ram.usable_bytes
    return card_short, ram_short


def obeys_rung(question: StageQuestion, candidate: Candidate) -> Rejection | None:
    """Refuse what the recovery ladder has left behind."""
    execution = candidate.option.execution
    detail = question.barred.get(execution)
    return None if detail is None else Rejection(execution=execution, reason=Reason.RUNG, detail=detail)


def has_card(question: StageQuestion, candidate: Candidate) -> Rejection | None:
    """Refuse card and stream where there is no card."""
    execution = candidate.option.execution
    if question.card is not None or execution.placement is Placement.CPU:
        return None
    return Rejection(execution=execution, reason=Reason.NO_CARD)


def fits_allocation(question: StageQuestion, candidate: Candidate) -> Rejection | None:
    """Refuse what computes in a larger piece than the card gives at once, however much is free.

    Engines lay all that a stage computes in into one buffer; weights are split over as many as it takes.
    """
    most_bytes = question.card.allocation_max_bytes if question.card else 0
    option = candidate.option
    if not most_bytes or isinstance(question.stage, Errand) or not option.footprint.card_bytes:
        return None
    streams = option.execution.placement is Placement.STREAM
    weights_bytes = option.execution.budget_bytes if streams else option.footprint.weights_bytes
    piece_bytes = option.footprint.card_bytes - weights_bytes
    if piece_bytes <= most_bytes:
        return None
    return Rejection(
        execution=option.execution,
        reason=Reason.ALLOCATION,
        needed_bytes=piece_bytes,
        available_bytes=most_bytes,
    )


def fits_card(question: StageQuestion, candidate: Candidate) -> Rejection | None:
    """Refuse what does not fit the card even after every release of the candidate."""
    short, _ = needed_bytes(question, candidate.option)
    freed = sum(release.card_bytes for release in candidate.releases)
    if short <= freed or candidate.option.footprint.card_bytes == 0:
        return None
    usable = question.card.usable_bytes if question.card else 0
    return Rejection(
        execution=candidate.option.execution,
        reason=Reason.CARD_BYTES,
        needed_bytes=short + usable,
        available_bytes=max(0, usable + freed),
    )


def fits_ram(question: StageQuestion, candidate: Candidate) -> Rejection | None:
    """Refuse what does not fit RAM; state saved by those who yield counts against it."""
    _, short = needed_bytes(question, candidate.option)
    freed = sum(release.ram_bytes for release in candidate.releases)
    if short <= freed or (candidate.option.footprint.ram_bytes == 0 and freed >= 0):
        return None
    usable = question.ram.usable_bytes
    return Rejection(
        execution=candidate.option.execution,
        reason=Reason.RAM_BYTES,
        needed_bytes=short + usable,
        available_bytes=max(0, usable + freed),
    )


Filter = Callable[[StageQuestion, Candidate], Rejection | None]
FILTERS: tuple[Filter, ...] = (obeys_rung, has_card, fits_allocation, fits_card, fits_ram)


def rejection_of(question: StageQuestion, candidate: Candidate) -> Rejection | None:
    """Ask the filters in order and return the first refusal."""
    for rejects in FILTERS:
        if rejection := rejects(question, candidate):
            return rejection
    return None
