"""Slots: the places of a context, each one sequence of its KV cache.

Owns what is in a slot and where it may be cut. A slot keeps what its last stream left, for the next one that
begins in the same way. Which rows are computed is decided by `loop`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate.workers.llm.context import Context
from tidegate.workers.llm.streams import Step, Stream, Text, common_count


@dataclass(slots=True)
class Slot:
    """One sequence. `items` are evaluated, the next one belongs at `position`; `marks` are (items, position)
    after each whole step of a prompt.
    """

    index: int
    items: list[int] = field(default_factory=list)
    position: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)
    user: Stream | Text | None = None
    used: int = 0  # The loop's tick at which it was used last.
    is_kept: bool = False  # The front has a state of all that it holds.

    @property
    def is_free(self) -> bool:
        """Whether somebody may move in."""
        return self.user is None

    def add_step(self, items: list[int], step: Step) -> None:
        """A whole step of a prompt was computed."""
        self.items += items[step.start : step.end]
        self.position += step.positions_count
        self.marks.append((len(self.items), self.position))

    def add_item(self, item: int) -> None:
        """One token was computed."""
        self.items.append(item)
        self.position += 1

    def clear(self, context: Context) -> None:
        """Forget everything."""
        context.trim(self.index, 0)
        self.items, self.marks, self.position, self.is_kept = [], [], 0, False

    def cut_to(self, context: Context, count: int) -> None:
        """Keep at most the first `count` items; less when the cut would fall into a picture, nothing when the
        model's memory cannot forget a part.
        """
        if count >= len(self.items):
            return
        at, position = max((mark for mark in self.marks if mark[0] <= count), default=(0, 0))
        if all(item >= 0 for item in self.items[at:count]):
            at, position = count, position + count - at
        if not context.trim(self.index, position):
            self.clear(context)
            return
        del self.items[at:]
        self.position = position
        self.marks = [mark for mark in self.marks if mark[0] <= at]

    def shift(self, context: Context, kept: int) -> int:
        """Forget the older half of the tokens after the first `kept`; how many, 0 when it is not possible."""
        shifted = (len(self.items) - kept) // 2
        if not context.shift(self.index, kept, shifted, self.position):
            return 0
        del self.items[kept : kept + shifted]
        self.position -= shifted
        self.marks = [mark for mark in self.marks if mark[0] <= kept]
        return shifted

    def cut_to_mark(self, context: Context, ends: set[int]) -> None:
        """Keep whole steps of the prompt only, up to the last that ends where one of `ends` does."""
        self.cut_to(context, max((mark[0] for mark in self.marks if mark[0] in ends), default=0))


def best_free(slots: list[Slot], items: list[int], *, wanted: int = -1) -> tuple[Slot, int] | None:
    """The free slot that shares most with a history, and how much; among equals `wanted`, an empty one, the
    one unused for longest.
    """
    free = [slot for slot in slots if slot.is_free]
    if not free:
        return None
    shared = {slot.index: common_count(slot.items, items) for slot in free}
    best = max(
        free,
        key=lambda slot: (shared[slot.index], slot.index == wanted, not slot.items, -slot.used, -slot.index),
    )
    return best, shared[best.index]
