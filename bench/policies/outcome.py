"""Outcomes: what became of the requests of one instance under one policy, and what it cost.

Owns the definition of delay and cost:

    image delay   from the request to the finished image
    chat delay    from the request to the last token, without the milliseconds that the answer itself takes on
    a
                  card of its own: the wait for the first token, and every pause after it
    cost          the sum of image delays and three times the chat delays; a request that failed or was not
                  answered in time costs FAILED_MS on top of what it waited
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any  # what JSON carries

CHAT_WEIGHT = 3
# Somebody notices, and asks again in another way.
FAILED_MS = 120_000


@dataclass(slots=True)
class Outcome:
    """What was measured in one run, in milliseconds and bytes."""

    failed_images: int = 0
    failed_chats: int = 0
    image_ms: list[int] = field(default_factory=list)
    chat_ms: list[int] = field(default_factory=list)
    first_token_ms: list[int] = field(default_factory=list)
    moved_bytes: int = 0  # To the card, and conversation state either way.
    refused_count: int = 0  # Allocations for which the card had no room.
    partial_ms: int = 0  # How long language models served partly from the CPU.
    failed_wait_ms: int = 0
    events_count: int = 0

    @property
    def failed_count(self) -> int:
        """Images and chats without an answer."""
        return self.failed_images + self.failed_chats

    @property
    def cost_ms(self) -> int:
        """The weighted cost."""
        failed_ms = (self.failed_images + CHAT_WEIGHT * self.failed_chats) * FAILED_MS
        return sum(self.image_ms) + CHAT_WEIGHT * sum(self.chat_ms) + failed_ms + self.failed_wait_ms

    def data(self) -> dict[str, Any]:  # Any: numbers and lists of numbers.
        """As plain data."""
        return asdict(self)


def percentile(values: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1))]
