"""The keeper: states of slots, saved for the front and taken in again.

Owns the notes that go with states, and the decision whether a state is believed. Its bytes are made by
`context`, its file by `states`; when something is saved is decided by `engine`.
"""

from __future__ import annotations

import os

from tidegate.wire.llm_link import StateNote
from tidegate.workers.llm import states
from tidegate.workers.llm.context import Context
from tidegate.workers.llm.slots import Slot
from tidegate.workers.llm.streams import UNKNOWN_ITEM, Stream


class Keeper:
    """Saves and restores for one context."""

    def __init__(self, context: Context, *, fingerprint: str, proves: bool) -> None:
        self._context, self._fingerprint, self._proves = context, fingerprint, proves

    def save(self, slot: Slot) -> tuple[StateNote, int]:
        """The state of a slot that holds something, and the memory file with it."""
        descriptor, state_bytes, digest = self._context.save(slot.index)
        note = StateNote(
            tokens_count=len(slot.items),
            position=slot.position,
            state_bytes=state_bytes,
            fingerprint=self._fingerprint,
            digest=digest,
            slot=slot.index,
            stepped_count=slot.marks[-1][0] if slot.marks else 0,
        )
        return note, descriptor

    def restore(self, slot: Slot, stream: Stream) -> bool:
        """Bring a stream's saved state into its slot; False leaves an empty slot, and everything is evaluated
        again.
        """
        note, descriptor = stream.order.state, stream.state
        assert note is not None and descriptor is not None, "a state comes with its note"
        slot.clear(self._context)
        try:
            if note.fingerprint != self._fingerprint:
                raise states.BrokenState("it was saved by another engine, model or configuration")
            data = states.mapped(descriptor)
            states.check(data, state_bytes=note.state_bytes, digest=note.digest)
            self._context.restore(slot.index, data)
            if self._proves and note.slot == slot.index:
                self._prove(slot, data)
        except (states.BrokenState, OSError):
            slot.clear(self._context)
            return False
        finally:
            os.close(descriptor)
            stream.state = None
        known = min(stream.order.common_count, note.tokens_count)
        slot.items = [*stream.items[:known], *[UNKNOWN_ITEM] * (note.tokens_count - known)]
        slot.position = note.position
        slot.marks = _marks(stream, min(known, note.stepped_count))
        return True

    def _prove(self, slot: Slot, data: states.Bytes) -> None:
        """Save what was restored once more: it must be the same bytes."""
        descriptor, state_bytes, _ = self._context.save(slot.index)
        try:
            same = state_bytes == len(data) and bool((states.mapped(descriptor) == data).all())
        finally:
            os.close(descriptor)
        assert same, "a restored state is not the one that was saved"


def _marks(stream: Stream, known: int) -> list[tuple[int, int]]:
    """Where the steps of the prompt end, as far as the state was computed in steps."""
    marks, position = [], 0
    for step in stream.steps:
        position += step.positions_count
        if step.end <= known:
            marks.append((step.end, position))
    return marks
