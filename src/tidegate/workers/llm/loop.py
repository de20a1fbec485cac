"""The loop: one turn after another, prompts and tokens of all streams through one context.

A turn begins and ends at a token boundary: every stream that generates has exactly one item that is chosen
and not yet computed. In a turn

    1. streams that wait move into free slots, where most of their history is known already
    2. prompts are computed, step by step
    3. the last item of every generating stream is computed, and its next one is chosen

`throughput` puts 2 and 3 into one call with the rows that there are (`calls`). `reproducible` computes each
step of a prompt in a call of its own, and tokens always in rows for all slots in order: an idle slot has a
row that is thrown away again. So the numbers of a stream never depend on who else is being served.

Owns the order of computing. Levels, states and conversations are `engine`'s.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from tidegate.wire import llm_link
from tidegate.wire.llm_child import Evaluation, OpenLlm, Overflow
from tidegate.wire.llm_link import Ending
from tidegate.wire.messages import FaultKind
from tidegate.workers.llm import vectors
from tidegate.workers.llm.calls import NO_TOKEN, Begun, Served, rows_of, without_gaps
from tidegate.workers.llm.context import Context, Row
from tidegate.workers.llm.keeper import Keeper
from tidegate.workers.llm.outbox import Outbox
from tidegate.workers.llm.placing import Placing
from tidegate.workers.llm.slots import Slot, best_free
from tidegate.workers.llm.streams import NEVER_SAVED, Step, Stream, Text, common_count
from tidegate.workers.llm.vision import Eyes
from tidegate.workers.llm.weights import EngineRefused, Weights

# A prompt that shares fewer items with one that is just being computed does not wait for it.
_WORTH_WAITING_ITEMS: Final = 64
# Signs of life while what was generated is computed again, token by token.
_TOLD_ITEMS: Final = 32
# A step of a second prompt is not cut for less than this part of a batch.
_CUT_PARTS: Final = 8


class Loop:
    """All streams of one context."""

    def __init__(
        self,
        context: Context,
        weights: Weights,
        order: OpenLlm,
        *,
        outbox: Outbox,
        eyes: Eyes,
        keeper: Keeper,
        on_eviction: Callable[[Slot], None],
    ) -> None:
        self.context, self._weights, self._order = context, weights, order
        self._out, self._eyes = outbox, eyes
        self.slots = [Slot(index) for index in range(order.slots_count)]
        self.waiting: deque[Stream | Text] = deque()
        self._placing = Placing(
            context, weights, order, slots=self.slots, keeper=keeper, on_eviction=on_eviction
        )
        self._is_fixed = order.evaluation is Evaluation.REPRODUCIBLE and not weights.is_recurrent
        self._is_alone = order.evaluation is Evaluation.REPRODUCIBLE and weights.is_recurrent
        self._turn = 0

    @property
    def has_work(self) -> bool:
        """Whether the next turn would compute anything."""
        return bool(self.waiting) or any(slot.user is not None for slot in self.slots)

    @property
    def awaits_pictures(self) -> bool:
        """Whether some prompt has a picture that is not computed yet."""
        waiting = [user for user in self.waiting if isinstance(user, Stream)]
        todo = [step for _, stream in self.streams() for step in stream.todo]
        todo += [step for stream in waiting for step in stream.steps]
        return any(step.picture is not None for step in todo)

    def streams(self) -> Iterator[tuple[Slot, Stream]]:
        """Every stream that has a slot."""
        for slot in self.slots:
            if isinstance(slot.user, Stream):
                yield slot, slot.user

    # ------------------------------------------------------------ a turn

    def turn(self) -> None:
        """One turn."""
        self._turn += 1
        if self.waiting:
            self._admit()
        prefilling: list[Served] = []
        generating: list[Served] = []
        texts: list[tuple[Slot, Text]] = []
        for slot in self.slots:
            user = slot.user
            if isinstance(user, Stream):
                if user.todo:
                    prefilling.append((slot, user))
                elif self._has_room(slot, user):
                    generating.append((slot, user))
            elif user is not None:
                texts.append((slot, user))
        if self._order.evaluation is Evaluation.THROUGHPUT:
            self._compute_together(prefilling, generating)
        else:
            if prefilling:
                slot, stream = min(prefilling, key=lambda pair: pair[1].number)
                self._compute_steps([(slot, stream, stream.todo[0])])
            self._compute_in_rows(generating)
        if texts:
            self._embed(*texts[0])

    def _compute_together(self, prefilling: list[Served], generating: list[Served]) -> None:
        singles = [slot for slot, _ in generating]
        if not self.context.shares_cells and not self._weights.is_recurrent:
            singles = without_gaps(self.slots, singles, positions_max=self._order.context_tokens_count)
        room = self.context.batch_max - len(singles)
        begun: list[Begun] = []
        for slot, stream in prefilling:
            step = stream.todo[0]
            if step.picture is not None:
                self._compute_picture(slot, stream, step)
                continue
            if step.end - step.start > room:
                if begun and room < self.context.batch_max // _CUT_PARTS:
                    continue
                count = max(1, room)
                step = Step(step.start, step.start + count, count)
            begun.append((slot, stream, step))
            room -= step.end - step.start
        if begun or generating:
            self._compute_steps(begun, generating, singles)

    def _compute_steps(
        self, begun: list[Begun], generating: list[Served] | None = None, singles: list[Slot] | None = None
    ) -> None:
        """One call for these steps of prompts and for the last items of the generating streams, which are
        among `singles`.
        """
        if len(begun) == 1 and begun[0][2].picture is not None:
            self._compute_picture(*begun[0])
            return
        generating = generating or []
        rows, outputs, thrown = rows_of(generating, begun, singles or [])
        done = self._decoded(rows, generating + [(slot, stream) for slot, stream, _ in begun])
        for slot in thrown:
            self.context.trim(slot.index, slot.position)
        if not done:
            return
        for slot, stream in generating:
            slot.add_item(stream.items[-1])
        for slot, stream, step in begun:
            self._step_done(slot, stream, step)
        for slot, stream, row in outputs:
            self._choose(slot, stream, row)

    def _compute_in_rows(self, generating: list[Served]) -> None:
        if not generating:
            return
        if self._is_alone:
            for slot, stream in generating:
                self._compute_rows([(slot, stream)], [slot])
        else:
            self._compute_rows(generating, self.slots)

    def _compute_rows(self, generating: list[Served], slots: list[Slot]) -> None:
        """One call with a row for each of these slots; those without a stream are thrown away again."""
        served = {slot.index: stream for slot, stream in generating}
        rows = [
            Row(served[slot.index].items[len(slot.items)], slot.position, slot.index, True)
            if slot.index in served
            else Row(NO_TOKEN, slot.position, slot.index, True)
            for slot in slots
        ]
        done = self._decoded(rows, generating)
        for slot in slots:
            if slot.index not in served:
                self.context.trim(slot.index, slot.position)
        if not done:
            return
        for row, slot in enumerate(slots):
            if slot.index in served:
                stream = served[slot.index]
                slot.add_item(stream.items[len(slot.items)])
                if len(slot.items) == len(stream.items):
                    self._choose(slot, stream, row)
                elif len(slot.items) % _TOLD_ITEMS == 0:
                    self._tell_progress(slot, stream)

    def _compute_picture(self, slot: Slot, stream: Stream, step: Step) -> None:
        try:
            assert step.picture is not None, "only pictures are computed here"
            self._eyes.compute(
                self._weights, self.context, step.picture, sequence=slot.index, position=slot.position
            )
        except EngineRefused as refusal:
            self._fail(slot, stream, refusal)
            return
        self._step_done(slot, stream, step)

    def _decoded(self, rows: list[Row], involved: list[Served]) -> bool:
        try:
            self.context.decode(rows)
        except EngineRefused as refusal:
            for slot, stream in involved:
                self._fail(slot, stream, refusal)
            return False
        return True

    # ------------------------------------------------------------ what became of it

    def _step_done(self, slot: Slot, stream: Stream, step: Step) -> None:
        first = stream.todo.popleft()
        if step.end < first.end:
            stream.todo.appendleft(Step(step.end, first.end, first.end - step.end))
        slot.add_step(stream.items, step)
        self._tell_progress(slot, stream)

    def _tell_progress(self, slot: Slot, stream: Stream) -> None:
        self._out.say(
            llm_link.Evaluated(
                stream=stream.number,
                done_count=len(slot.items),
                total_count=len(stream.items),
                reused_count=stream.reused_count,
                prompt_count=len(stream.items) - stream.generated_count,
            )
        )

    def _choose(self, slot: Slot, stream: Stream, row: int) -> None:
        assert stream.chain is not None, "a stream that computes has samplers"
        try:
            token = stream.chain.choose(self.context, row)
            if not self.context.has_sense(row, token):
                raise EngineRefused(FaultKind.NOT_FINITE, "the model computed NaN or infinity")
        except EngineRefused as refusal:
            self._fail(slot, stream, refusal)
            return
        if self._weights.is_end(token):
            self._end(slot, stream, Ending.STOP)
            return
        likely = None
        if stream.order.sampling.logprobs_count >= 0:
            likely = stream.chain.likely(self.context, row, token)
        stream.items.append(token)
        stream.generated_count += 1
        self._out.token(stream.number, token, likely=likely, is_first=not stream.was_heard)
        stream.was_heard = True
        if stream.tokens_left <= 0:
            self._end(slot, stream, Ending.LENGTH)

    def _has_room(self, slot: Slot, stream: Stream) -> bool:
        """Whether one more item fits, if need be after a shift; else the answer ends here.

        A shift comes right before the call that carries it out, so that no state is ever saved between them.
        """
        if slot.position < self._order.context_tokens_count or self._shift(slot, stream):
            return True
        self._end(slot, stream, Ending.CONTEXT)
        return False

    def _shift(self, slot: Slot, stream: Stream) -> bool:
        """Forget the older half after the beginning that is kept; False when that is not possible."""
        if self._order.overflow is not Overflow.SHIFT or any(item < 0 for item in slot.items):
            return False
        kept = min(self._order.keep_tokens_count, len(slot.items) // 2)
        shifted = slot.shift(self.context, kept)
        del stream.items[kept : kept + shifted]
        if not shifted:
            return False
        stream.saved_count = NEVER_SAVED  # What the front has is of another history now.
        self._out.say(llm_link.Shifted(stream=stream.number, kept_count=kept, shifted_count=shifted))
        return True

    def _end(self, slot: Slot, stream: Stream, ending: Ending) -> None:
        self._out.end(stream.number, ending)
        self._leave(slot, stream)

    def _fail(self, slot: Slot, stream: Stream | Text, refusal: EngineRefused) -> None:
        is_final = refusal.fault is FaultKind.INVALID_REQUEST
        self._out.say(
            llm_link.Failed(
                stream=stream.number, fault=refusal.fault, message=refusal.message, is_final=is_final
            )
        )
        slot.clear(self.context)
        self._leave(slot, stream)

    def _leave(self, slot: Slot, user: Stream | Text) -> None:
        """The slot is free; what it holds stays for whoever begins in the same way."""
        if isinstance(user, Stream):
            forget(user, self._eyes)
            if self._is_fixed or self._is_alone:
                # Generated tokens were computed one by one, and in a prompt they would be computed together.
                slot.cut_to_mark(self.context, {step.end for step in user.steps})
        slot.user, slot.used = None, self._turn

    # ------------------------------------------------------------ coming and going

    def drop(self, number: int) -> None:
        """Stop with a stream, wherever it is."""
        for slot in self.slots:
            if slot.user is not None and slot.user.number == number:
                self._out.forget(number)
                self._leave(slot, slot.user)
        for waiting in [waiting for waiting in self.waiting if waiting.number == number]:
            self.waiting.remove(waiting)
            if isinstance(waiting, Stream):
                forget(waiting, self._eyes)

    def _admit(self) -> None:
        for user in tuple(self.waiting):
            if isinstance(user, Text):
                self._place_text(user)
            elif not self._is_worth_waiting(user):
                self._place(user)

    def _place_text(self, text: Text) -> None:
        found = best_free(self.slots, [])
        if found is not None:
            self.waiting.remove(text)
            found[0].clear(self.context)
            found[0].user = text

    def _is_worth_waiting(self, stream: Stream) -> bool:
        """Whether most of the prompt is just being computed by another stream, and can be copied then."""
        if stream.order.state is not None:
            return False
        best = max((common_count(slot.items, stream.items) for slot in self.slots), default=0)
        return any(
            other.todo and common_count(other.items, stream.items) > best + _WORTH_WAITING_ITEMS
            for _, other in self.streams()
        )

    def _place(self, stream: Stream) -> None:
        note = stream.order.state
        found = best_free(self.slots, stream.items, wanted=note.slot if note is not None else -1)
        if found is None:
            return
        self.waiting.remove(stream)
        slot, shared = found
        slot.user, slot.used, slot.is_kept = stream, self._turn, False
        try:
            self._placing.prepare(slot, stream, shared)
            self._tell_progress(slot, stream)
        except EngineRefused as refusal:
            self._fail(slot, stream, refusal)

    def _embed(self, slot: Slot, text: Text) -> None:
        try:
            vector = vectors.computed(self.context, slot.index, text)
        except EngineRefused as refusal:
            self._fail(slot, text, refusal)
            return
        if vector is not None:
            self._out.say(llm_link.Embedded(stream=text.number, vector=vector))
            slot.clear(self.context)
            self._leave(slot, text)


def forget(stream: Stream, eyes: Eyes) -> None:
    """Give back what a stream holds outside the context."""
    if stream.chain is not None:
        stream.chain.free()
        stream.chain = None
    if stream.state is not None:
        os.close(stream.state)
        stream.state = None
    for piece in stream.pieces:
        eyes.forget(piece)
    stream.pieces = ()
