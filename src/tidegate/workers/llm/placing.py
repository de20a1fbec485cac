"""Placing: a stream moves into a slot, and as much of its history as can be had is there before it.

Owns where the beginning comes from (what the slot held, another slot, a saved state), how much of it may be
used, and what is left to compute. When a stream moves in is decided by `loop`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tidegate.wire.llm_child import Evaluation, OpenLlm
from tidegate.workers.llm.context import Context
from tidegate.workers.llm.keeper import Keeper
from tidegate.workers.llm.sampling import Chain
from tidegate.workers.llm.slots import Slot
from tidegate.workers.llm.streams import Step, Stream, common_count, cut, merged
from tidegate.workers.llm.weights import Weights

# Fewer items are computed faster than a state is restored; and a slot copied, of which all cells are.
_WORTH_RESTORING_ITEMS: Final = 16
_WORTH_COPYING_ITEMS: Final = 64


class Placing:
    """Moves streams into the slots of one context."""

    def __init__(
        self,
        context: Context,
        weights: Weights,
        order: OpenLlm,
        *,
        slots: list[Slot],
        keeper: Keeper,
        on_eviction: Callable[[Slot], None],
    ) -> None:
        self._context, self._weights, self._order = context, weights, order
        self._slots, self._keeper, self._on_eviction = slots, keeper, on_eviction

    def prepare(self, slot: Slot, stream: Stream, shared: int) -> None:
        """Bring into the slot what is known of the history, and note what is to be computed."""
        order = stream.order
        stream.chain = Chain(
            self._weights,
            order.sampling,
            grammar=order.grammar,
            triggers=order.triggers,
            context_tokens_count=self._order.context_tokens_count,
        )
        told = len(stream.items) - stream.generated_count
        stream.chain.remember(stream.items[:told], stream.items[told:])
        is_own = self._fill(slot, stream, shared)
        self._cut_to_usable(slot, stream, is_own=is_own)
        stream.reused_count = stream.saved_count = len(slot.items)
        stream.todo.extend(self._todo(slot, stream))

    def _fill(self, slot: Slot, stream: Stream, shared: int) -> bool:
        """From a saved state, or another slot, or what the slot held already: whatever knows most. True when
        it is a state of this very request.
        """
        source = max(self._slots, key=lambda other: common_count(other.items, stream.items))
        elsewhere = common_count(source.items, stream.items)
        known = stream.order.common_count if stream.order.state is not None else 0
        if known < shared + _WORTH_RESTORING_ITEMS:
            known = 0
        if elsewhere < shared + _WORTH_COPYING_ITEMS:
            elsewhere = 0
        if shared < len(slot.items) // 2:
            self._on_eviction(slot)
        if known and known >= elsewhere and self._keeper.restore(slot, stream):
            return stream.order.is_own
        if elsewhere and source is not slot:
            slot.clear(self._context)
            self._context.copy(source.index, slot.index)
            slot.items, slot.marks = source.items.copy(), source.marks.copy()
            slot.position = source.position
        return False

    def _cut_to_usable(self, slot: Slot, stream: Stream, *, is_own: bool) -> None:
        """Keep what the history and the slot share, but leave something whose logits are still to come.

        In `reproducible` what others left is used only in whole steps of this prompt: computed in another
        way it would not be the same numbers.
        """
        usable = min(common_count(slot.items, stream.items), len(stream.items) - 1)
        if is_own and usable == len(slot.items):
            return
        if self._order.evaluation is Evaluation.REPRODUCIBLE:
            slot.cut_to_mark(self._context, {step.end for step in stream.steps if step.end <= usable})
        else:
            slot.cut_to(self._context, usable)

    def _todo(self, slot: Slot, stream: Stream) -> list[Step]:
        done = len(slot.items)
        if self._order.evaluation is Evaluation.THROUGHPUT:
            end = len(stream.items) - (1 if stream.generated_count else 0)
            later = [step for step in stream.steps if step.end > done]
            told = max((step.end for step in stream.steps), default=done)
            if later and later[0].start < done:
                later[0] = Step(done, later[0].end, later[0].end - done)
            return merged([*later, *cut(max(done, told), end, chunk=self._context.batch_max)])
        # What was generated is computed again as it was then: token by token.
        return [step for step in stream.steps if step.end > done]
