"""Calls: which rows one call of the engine computes, and which of them answer somebody.

Owns the order of rows. Where each slot has cells of its own, rows of slots that lie beside each other are
computed at once and those after a gap in another pass over all weights, so rows are in the order of their
slots, and a gap may be filled with a row that is thrown away again. Who takes part is decided by `loop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tidegate.workers.llm.context import Row
from tidegate.workers.llm.slots import Slot
from tidegate.workers.llm.streams import Step, Stream

# The token of thrown-away rows; any will do.
NO_TOKEN: Final = 0
# Rows that are thrown away cost less than another pass over all weights, as long as they are this few.
_GAPS_MAX: Final = 4

Served = tuple[Slot, Stream]
Begun = tuple[Slot, Stream, Step]
# The slot, the stream, and the row whose logits are its next token's.
Output = tuple[Slot, Stream, int]


def without_gaps(slots: Sequence[Slot], used: list[Slot], *, positions_max: int) -> list[Slot]:
    """These slots, in order, and the few between them; only these when a gap has no cell left for a row."""
    if len(used) < 2 or used[-1].index - used[0].index == len(used) - 1:
        return used
    whole = slots[used[0].index : used[-1].index + 1]
    gaps = [slot for slot in whole if all(slot is not other for other in used)]
    if len(gaps) > _GAPS_MAX or any(slot.position >= positions_max for slot in gaps):
        return used
    return list(whole)


def rows_of(
    generating: Sequence[Served], begun: Sequence[Begun], singles: Sequence[Slot]
) -> tuple[list[Row], list[Output], list[Slot]]:
    """Rows of one call, who waits for the logits of which, and whose row is to be thrown away.

    A step of each prompt that is begun, and one row for each of the `singles`: the last item of who generates
    there, else one for nobody.
    """
    rows: list[Row] = []
    outputs: list[Output] = []
    thrown: list[Slot] = []
    served = {slot.index: stream for slot, stream in generating}
    steps = {slot.index: (slot, stream, step) for slot, stream, step in begun}
    taking_part = {slot.index: slot for slot in (*singles, *(slot for slot, _, _ in begun))}
    for index, slot in sorted(taking_part.items()) if steps else taking_part.items():
        if index in steps:
            _, stream, step = steps[index]
            last = step.end - 1
            chooses = step.end == len(stream.items) and not stream.generated_count
            if chooses:
                outputs.append((slot, stream, len(rows) + last - step.start))
            rows += [
                Row(item, slot.position + at - step.start, index, chooses and at == last)
                for at, item in enumerate(stream.items[step.start : step.end], step.start)
            ]
        elif index in served:
            stream = served[index]
            outputs.append((slot, stream, len(rows)))
            rows.append(Row(stream.items[-1], slot.position, index, True))
        else:
            thrown.append(slot)
            rows.append(Row(NO_TOKEN, slot.position, index, False))
    return rows, outputs, thrown
