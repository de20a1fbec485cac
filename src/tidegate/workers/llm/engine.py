"""The engine: one model's life in this process, from OpenLlm to the end.

Owns the levels (weights and context made, suspended and given back), the streams' coming and going as the
front says, snapshots, and handing states over. What is computed in which order is `loop`'s; reading and
waiting is `__main__`'s. All of it runs between two turns of the loop, so at token boundaries.

A state is handed over before its memory is given back, and the front says that it has it. A snapshot is only
a copy for the case that this process dies, and nobody waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, assert_never

from tidegate_engines import llama

from tidegate.core.llm.level import Level
from tidegate.wire import llm_child, llm_link
from tidegate.wire.llm_child import Holding, LevelFailed, LevelReached, OpenLlm
from tidegate.wire.messages import FaultKind, Message
from tidegate.workers.llm import context, weights
from tidegate.workers.llm.keeper import Keeper
from tidegate.workers.llm.library import Library
from tidegate.workers.llm.loop import Loop, forget
from tidegate.workers.llm.outbox import Outbox
from tidegate.workers.llm.slots import Slot
from tidegate.workers.llm.streams import Piece, Stream, Text, steps_of
from tidegate.workers.llm.vision import Eyes
from tidegate.workers.llm.weights import EngineRefused, Weights

# A killed child costs at most this many items of each stream.
SNAPSHOT_ITEMS: Final = 256
# Saving a larger state costs more than milliseconds, so it may take a tenth of the time at most: while a long
# prompt is evaluated, or with a long history, a death then costs some seconds instead of a count of items.
LARGE_STATE_BYTES: Final = 16 << 20
LARGE_STATE_REST: Final = 10
# What an idle slot holds is not worth a memory file when it is shorter.
IDLE_ITEMS_MIN: Final = 64

TakeDescriptor = Callable[[], int]


class Engine:
    """One model. `loop` exists while there is a context."""

    def __init__(self, outbox: Outbox) -> None:
        self._out = outbox
        self._order: OpenLlm | None = None
        self._lib: Library | None = None
        self._eyes: Eyes | None = None
        self._weights: Weights | None = None
        self._keeper: Keeper | None = None
        self.loop: Loop | None = None
        self._handover = 0
        self._held: tuple[Holding, ...] = ()  # As it was when there was a context.
        self._rests_until_s = 0.0
        self.unkept: set[int] = set()  # Handovers that the front has not confirmed.

    # ------------------------------------------------------------ the runtime's commands

    def open(self, order: OpenLlm) -> llm_child.LlmOpened | llm_child.LlmRefused:
        """Become this model; nothing but the card's ledger is opened."""
        try:
            self._lib = Library()
            if order.ledger_path:
                llama.attach_virtual_card(order.ledger_path)
            # By name only: to ask a device for its memory opens a context on it.
            llama.device_list([order.device] if order.device else [])
        except (llama.UnusableLedger, OSError, KeyError) as error:
            told = str(error.args[0] if isinstance(error, KeyError) else error)
            return llm_child.LlmRefused(serial=order.serial, fault=FaultKind.UNSUPPORTED, message=told)
        self._order, self._eyes = order, Eyes(self._lib, order)
        return llm_child.LlmOpened(serial=order.serial)

    def set_level(self, wish: llm_child.SetLevel, wait_until_kept: Callable[[], None]) -> Message:
        """Go to a level; the answer says where we are."""
        began = time.monotonic()
        state_bytes = 0
        try:
            if wish.level is Level.WARM:
                state_bytes = self._cool(wish.ram_bytes, wait_until_kept)
            else:
                self._heat(wish.layers_count, wait_until_kept)
        except EngineRefused as refusal:
            return LevelFailed(
                serial=wish.serial, fault=refusal.fault, message=refusal.message, holdings=self._holdings()
            )
        return LevelReached(
            serial=wish.serial,
            level=wish.level,
            layers_count=self._weights.layers_count if self._weights else 0,
            took_ms=round((time.monotonic() - began) * 1000),
            state_bytes=state_bytes,
            holdings=self._holdings(),
        )

    def _heat(self, layers_count: int, wait_until_kept: Callable[[], None]) -> None:
        if self._order is None or self._lib is None or self._eyes is None:
            raise EngineRefused(FaultKind.INVALID_REQUEST, "no model was opened")
        if self._weights is not None and self._weights.layers_count != layers_count:
            self._cool(1 << 62, wait_until_kept)
            self._weights.free()
            self._weights = None
        if self._weights is None:
            self._weights = weights.load(self._lib, self._order, layers_count=layers_count)
        if self.loop is not None:
            return
        made = context.Context(self._lib, self._weights, self._order)
        if self._order.warm_up_tokens_count:
            try:
                made.warm_up(self._order.warm_up_tokens_count, token=0)
            except EngineRefused:
                made.free()
                raise
        fingerprint = context.fingerprint(self._order, shares=made.shares_cells)
        self._keeper = Keeper(made, fingerprint=fingerprint, proves=self._order.proves_restores)
        self.loop = Loop(
            made,
            self._weights,
            self._order,
            outbox=self._out,
            eyes=self._eyes,
            keeper=self._keeper,
            on_eviction=self._evict,
        )

    def _holdings(self) -> tuple[Holding, ...]:
        if self.loop is not None:
            found = llama.holdings(self.loop.context.pointer)
            self._held = tuple(
                Holding(
                    device=held.device,
                    weights_bytes=held.weights_bytes,
                    kv_bytes=held.kv_bytes,
                    compute_bytes=held.compute_bytes,
                )
                for held in found
            )
            return self._held
        if self._weights is None:
            return ()
        # Weights tell nothing without a context; they are the same as when there was one.
        return tuple(
            Holding(device=held.device, weights_bytes=held.weights_bytes, kv_bytes=0, compute_bytes=0)
            for held in self._held
        )

    # ------------------------------------------------------------ down: suspend, hand over, give back

    def _cool(self, ram_bytes: int, wait_until_kept: Callable[[], None]) -> int:
        """Suspend every stream, hand states over within this many bytes, free the context."""
        loop, self.loop = self.loop, None
        if loop is None:
            return 0
        assert self._eyes is not None, "a loop has eyes"
        state_bytes = 0
        users = [slot for slot in loop.slots if slot.user is not None]
        for slot in users:
            state_bytes += self._hand_over(loop, slot, ram_bytes - state_bytes)
        for waiting in loop.waiting:
            self._out.say(llm_link.Declined(stream=waiting.number))
            self._forget(waiting)
        for slot in (slot for slot in loop.slots if slot.user is None and not slot.is_kept):
            state_bytes += self._hand_over(loop, slot, ram_bytes - state_bytes)
        for slot in users:
            if slot.user is not None:
                self._forget(slot.user)
        self._out.flush()
        wait_until_kept()
        self._eyes.close()
        loop.context.free()
        return state_bytes

    def _hand_over(self, loop: Loop, slot: Slot, room_bytes: int) -> int:
        assert self._keeper is not None, "a context has a keeper"
        stream = slot.user
        if isinstance(stream, Text):
            self._out.say(llm_link.Declined(stream=stream.number))
            return 0
        least = 1 if stream is not None else IDLE_ITEMS_MIN
        fits = len(slot.items) >= least and loop.context.state_bytes(slot.index) <= room_bytes
        if not fits and stream is None:
            return 0
        self._handover += 1
        self.unkept.add(self._handover)
        number = stream.number if stream is not None else 0
        if not fits:
            self._out.say(llm_link.Handover(handover=self._handover, stream=number))
            return 0
        note, descriptor = self._keeper.save(slot)
        history = b"" if stream is not None else _packed(slot)
        self._out.say(
            llm_link.Handover(handover=self._handover, stream=number, state=note, history=history),
            [descriptor],
        )
        os.close(descriptor)
        return note.state_bytes

    @property
    def has_unkept(self) -> bool:
        """Whether an idle conversation is worth a memory file and has none."""
        return self.loop is not None and any(_is_unkept(slot) for slot in self.loop.slots)

    def put_by(self) -> None:
        """Nobody wants anything: let the front have an idle conversation now, and not when its slot is wanted
        for another one, who would wait for it.
        """
        if self.loop is not None:
            self._evict(next(slot for slot in self.loop.slots if _is_unkept(slot)))

    def _evict(self, slot: Slot) -> None:
        """Let the front have what an idle slot holds, and wait for nobody."""
        if len(slot.items) < IDLE_ITEMS_MIN or slot.is_kept or self.loop is None:
            return
        assert self._keeper is not None, "a context has a keeper"
        note, descriptor = self._keeper.save(slot)
        slot.is_kept = True
        self._out.say(llm_link.Handover(handover=0, state=note, history=_packed(slot)), [descriptor])
        os.close(descriptor)

    def _forget(self, user: Stream | Text) -> None:
        if isinstance(user, Stream):
            forget(user, self._eyes_of())

    def _eyes_of(self) -> Eyes:
        assert self._eyes is not None, "streams come after OpenLlm"
        return self._eyes

    # ------------------------------------------------------------ the front's words

    def hear(self, message: llm_link.ToEngine, take: TakeDescriptor) -> None:
        """What the front wants; descriptors are taken in the order in which they were sent."""
        match message:
            case llm_link.Begin():
                self._begin(message, take)
            case llm_link.Embed():
                if self.loop is None:
                    self._out.say(llm_link.Declined(stream=message.stream))
                else:
                    tokens = llm_link.to_tokens(message.tokens)
                    self.loop.waiting.append(Text(number=message.stream, tokens=tokens))
            case llm_link.Leave():
                if self.loop is not None:
                    self.loop.drop(message.stream)
            case llm_link.Kept():
                self.unkept.discard(message.handover)
            case _:
                assert_never(message)

    def _begin(self, order: llm_link.Begin, take: TakeDescriptor) -> None:
        state = take() if order.state is not None else None
        images = [take() for segment in order.prompt if isinstance(segment, llm_link.Image)]
        try:
            if self.loop is None or self._weights is None or self._order is None:
                self._out.say(llm_link.Declined(stream=order.stream))
                return
            stream = self._stream(order, state, images)
            state = None  # it is the stream's now
            self.loop.waiting.append(stream)
        except EngineRefused as refusal:
            self._out.say(
                llm_link.Failed(
                    stream=order.stream,
                    fault=refusal.fault,
                    message=refusal.message,
                    is_final=refusal.fault is not FaultKind.OUT_OF_MEMORY,
                )
            )
        finally:
            for descriptor in [*images, *([state] if state is not None else [])]:
                os.close(descriptor)

    def _stream(self, order: llm_link.Begin, state: int | None, images: list[int]) -> Stream:
        assert self._weights is not None and self._order is not None, "there is a context"
        pieces = self._pieces(order, images)
        generated = llm_link.to_tokens(order.generated)
        prompt = [item for piece in pieces for item in piece.items]
        items = prompt + generated
        steps = steps_of(pieces, chunk=self._order.batch_tokens_count)
        if order.shifted_count:
            del items[order.kept_count : order.kept_count + order.shifted_count]
            steps = ()
        if len(items) > self._order.context_tokens_count:
            for piece in pieces:
                self._eyes_of().forget(piece)
            told = f"{len(items)} tokens do not fit into a context of {self._order.context_tokens_count}"
            raise EngineRefused(FaultKind.INVALID_REQUEST, told)
        return Stream(
            number=order.stream,
            order=order,
            items=items,
            generated_count=len(generated),
            steps=steps,
            pieces=tuple(pieces),
            state=state,
        )

    def _pieces(self, order: llm_link.Begin, images: list[int]) -> list[Piece]:
        assert self._weights is not None, "there is a context"
        pieces: list[Piece] = []
        pictures = iter(images)
        try:
            for segment in order.prompt:
                if isinstance(segment, llm_link.Ids):
                    pieces.append(Piece(ids=tuple(llm_link.to_tokens(segment.tokens))))
                else:
                    pieces += self._eyes_of().pieces_of(self._weights, segment, next(pictures))
        except EngineRefused:
            for piece in pieces:
                self._eyes_of().forget(piece)
            raise
        return pieces

    # ------------------------------------------------------------ a turn, and what comes of it

    @property
    def has_work(self) -> bool:
        """Whether there is a turn to make."""
        return self.loop is not None and self.loop.has_work

    def turn(self) -> None:
        """One turn of the loop, then what is due: snapshots, and words to the front."""
        if self.loop is None:
            return
        self.loop.turn()
        for slot, stream in self.loop.streams():
            if (
                len(slot.items) - stream.saved_count >= SNAPSHOT_ITEMS
                and time.monotonic() >= self._rests_until_s
            ):
                self._snapshot(slot, stream)
        self._out.flush_if_due()
        if self._eyes is not None and self._eyes.is_open and not self.loop.awaits_pictures:
            self._eyes.close()

    def _snapshot(self, slot: Slot, stream: Stream) -> None:
        assert self._keeper is not None, "a context has a keeper"
        began = time.monotonic()
        note, descriptor = self._keeper.save(slot)
        stream.saved_count = len(slot.items)
        if note.state_bytes > LARGE_STATE_BYTES:
            ended = time.monotonic()
            self._rests_until_s = ended + LARGE_STATE_REST * (ended - began)
        self._out.say(llm_link.Snapshot(stream=stream.number, state=note), [descriptor])
        os.close(descriptor)

    def forget_streams(self) -> None:
        """The front is gone, or another one came: nobody waits for these streams any more."""
        if self.loop is not None:
            for number in [user.number for user in self.loop.waiting]:
                self.loop.drop(number)
            for _, stream in tuple(self.loop.streams()):
                self.loop.drop(stream.number)
        self.unkept.clear()

    def close(self, wait_until_kept: Callable[[], None]) -> None:
        """Hand everything over and give everything back."""
        self._cool(1 << 62, wait_until_kept)
        if self._weights is not None:
            self._weights.free()
            self._weights = None


def _is_unkept(slot: Slot) -> bool:
    return slot.user is None and not slot.is_kept and len(slot.items) >= IDLE_ITEMS_MIN


def _packed(slot: Slot) -> bytes:
    """The history of an idle slot: tokens, and for places of pictures their items."""
    return llm_link.to_bytes(slot.items)
