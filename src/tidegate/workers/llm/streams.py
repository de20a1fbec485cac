"""Streams: attempts to go on with one request each, as the child sees them.

Owns a stream's history as items, and how its prompt is cut into steps. An item is a token, or one place of a
picture: a negative number made from the picture's content, so that histories can be compared as lists. Where
a stream lives is a `slots.Slot`; what is computed next is decided by `loop`.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final  # Any: a pointer of the bindings

from tidegate.wire import llm_link
from tidegate.workers.llm.sampling import Chain

# A stream whose state the front does not have at all: a snapshot is due.
NEVER_SAVED: Final = -(1 << 30)
# An item that is like no other: what a restored state holds beyond the history that it is restored for.
UNKNOWN_ITEM: Final = -(2**40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of text, or a picture (a part of one): with M-RoPE it takes fewer positions than places."""

    ids: tuple[int, ...] = ()
    key: str = ""
    items_count: int = 0
    positions_count: int = 0
    chunk: Any = None

    @property
    def items(self) -> list[int]:
        """What stands for it in a history."""
        if not self.key:
            return list(self.ids)
        return [-1 - (zlib.crc32(self.key.encode()) >> 1)] * self.items_count


@dataclass(frozen=True, slots=True)
class Step:
    """Items `start` to `end` of a history, computed in one call; a picture is always a step of its own."""

    start: int
    end: int
    positions_count: int
    picture: Piece | None = None


@dataclass(slots=True, kw_only=True)
class Stream:
    """One stream. `items` is the whole history; the last item is the one that was chosen last, and is not in
    the cache at a token boundary.
    """

    number: int
    order: llm_link.Begin
    items: list[int]
    generated_count: int
    steps: tuple[Step, ...]
    pieces: tuple[Piece, ...] = ()
    state: int | None = None  # The descriptor of the saved state, until it is restored.
    chain: Chain | None = None
    todo: deque[Step] = field(default_factory=deque)
    reused_count: int = 0
    saved_count: int = 0  # Items that the front's last snapshot holds.
    was_heard: bool = False  # Its first token of this attempt went out.

    @property
    def tokens_left(self) -> int:
        """How many more tokens it may generate; huge when nobody said."""
        most = self.order.sampling.tokens_max
        return most - self.generated_count if most >= 0 else 1 << 30


@dataclass(slots=True, kw_only=True)
class Text:
    """A text whose vector is wanted."""

    number: int
    tokens: list[int]
    done_count: int = 0
    total: list[float] = field(default_factory=list)


def steps_of(pieces: Sequence[Piece], *, chunk: int) -> tuple[Step, ...]:
    """A prompt cut into steps: text at multiples of `chunk` from where it begins, pictures whole."""
    found: list[Step] = []
    start = 0
    for piece in pieces:
        if piece.key:
            end = start + piece.items_count
            found.append(Step(start, end, piece.positions_count, piece))
        else:
            end = start + len(piece.ids)
            found += cut(start, end, chunk=chunk)
        start = end
    return tuple(found)


def cut(start: int, end: int, *, chunk: int) -> list[Step]:
    """A run of text as steps of at most `chunk` items."""
    edges = [*range(start, end, chunk), end]
    return [Step(a, b, b - a) for a, b in itertools.pairwise(edges)]


def merged(steps: Iterable[Step]) -> list[Step]:
    """The same steps, those of text that follow each other as one: for who may cut them anywhere."""
    found: list[Step] = []
    for step in steps:
        if found and step.picture is None and found[-1].picture is None:
            last = found.pop()
            count = last.positions_count + step.positions_count
            found.append(Step(last.start, step.end, count))
        else:
            found.append(step)
    return found


def common_count(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two histories share from their beginning; by halving, since slices compare fast."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
