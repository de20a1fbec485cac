"""Scores: what a candidate costs everybody, in expected milliseconds.

Owns Score and its four parts. The class of a score says who is bothered at all, in the configured yield
order; milliseconds decide within a class. Bytes are none of its business: see `filters.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from tidegate.core.planner.filters import Candidate, keeps_held
from tidegate.core.planner.question import StageQuestion, YieldClass
from tidegate.core.quantity import time_text
from tidegate.core.stage import DecodeMode, Placement


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Score:
    """Lower is better; fields stand in the order of comparison, the parts follow for the reader."""

    rank: int
    total_ms: int
    order: int
    free_ms: int  # Until those who yield have given their bytes back.
    load_ms: int  # Until the weights are where they are needed.
    run_ms: int  # The stage itself.
    return_ms: int  # Chance of being needed x time to bring back, summed over those who yield.

    def text(self) -> str:
        """Word the parts, leaving out those that cost nothing."""
        parts = [
            ("free", self.free_ms),
            ("load", self.load_ms),
            ("run", self.run_ms),
            ("return", self.return_ms),
        ]
        told = " + ".join(f"{word} {time_text(cost)}" for word, cost in parts if cost)
        return f"{time_text(self.total_ms)} ({told})" if told else time_text(self.total_ms)


def score_of(question: StageQuestion, candidate: Candidate) -> Score:
    """Score one candidate that passed the filters."""
    option, releases = candidate.option, candidate.releases
    # Releases go on side by side, so the slowest one counts.
    free_ms = max((release.free_ms for release in releases), default=0)
    load_ms = 0 if keeps_held(question, option) else option.load_ms
    return_ms = sum(release.expected_return_ms for release in releases)
    return Score(
        rank=_rank(question, candidate),
        total_ms=free_ms + load_ms + option.run_ms + return_ms,
        order=candidate.order,
        free_ms=free_ms,
        load_ms=load_ms,
        run_ms=option.run_ms,
        return_ms=return_ms,
    )


def _rank(question: StageQuestion, candidate: Candidate) -> int:
    order = question.yield_order
    ranks = [order.index(release.yields) + 1 for release in candidate.releases]
    execution = candidate.option.execution
    if execution.mode is DecodeMode.TILED:
        ranks.append(order.index(YieldClass.TILES) + 1)
    if execution.layers_count:
        ranks.append(order.index(YieldClass.STREAM) + 1)  # Partly on the card is as much of a loss.
    match execution.placement:
        case Placement.CARD:
            pass
        case Placement.STREAM:
            ranks.append(order.index(YieldClass.STREAM) + 1)
        case Placement.CPU:
            # On a machine without a card the CPU is no concession.
            ranks.append(order.index(YieldClass.CPU) + 1 if question.card else 0)
        case _:
            assert_never(execution.placement)
    return max(ranks, default=0)
