"""The recovery ladder: after a failure, which executions of a stage are left?

    encode                 card -> stream -> CPU
    denoise                card -> stream -> CPU
    decode, encode_image   card -> largest tile that fits -> smallest tile -> CPU -> CPU in the smallest tile

Owns the rungs and the rule that moves down one per failed attempt; the class of the failure picks the rung.
It only bars executions: which of those left fits best is decided by the planner, as for every first attempt.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import assert_never

from tidegate.core.image.failure import Attempt, Failure
from tidegate.core.planner.choose import choose
from tidegate.core.planner.plan import Plan, Refusal
from tidegate.core.planner.question import StageQuestion
from tidegate.core.stage import DecodeMode, Execution, Placement, Stage


class Rung(enum.StrEnum):
    """A step of the ladder."""

    CARD = "card"
    STREAM = "stream"
    TILED = "tiled"
    SMALLEST_TILE = "smallest_tile"
    CPU = "cpu"
    CPU_SMALLEST_TILE = "cpu_smallest_tile"


_WEIGHTS = (Rung.CARD, Rung.STREAM, Rung.CPU)
_PIXELS = (Rung.CARD, Rung.TILED, Rung.SMALLEST_TILE, Rung.CPU, Rung.CPU_SMALLEST_TILE)
LADDER: Mapping[Stage, tuple[Rung, ...]] = MappingProxyType(
    {Stage.ENCODE: _WEIGHTS, Stage.DENOISE: _WEIGHTS, Stage.DECODE: _PIXELS, Stage.ENCODE_IMAGE: _PIXELS}
)
# Every rung once, and the last one again for failures that no rung can cure.
ATTEMPTS_MAX = 8
# Whoever kills a worker from outside says nothing about how the stage runs, so this is no number of ways but
# of patience: the worker rests longer and longer in between (`supervision.py`), all in all ten minutes.
KILLS_MAX = 64
# A blank image is redone once; if it is blank again, somebody asked for one colour.
BLANKS_MAX = 2


def rung_of(execution: Execution, smallest_tile: int) -> Rung:
    """Name the rung that an execution stands on; `smallest_tile` is the smallest on offer."""
    tiled = execution.mode is DecodeMode.TILED
    match execution.placement:
        case Placement.CARD:
            if not tiled:
                return Rung.CARD
            return Rung.SMALLEST_TILE if execution.tile <= smallest_tile else Rung.TILED
        case Placement.STREAM:
            return Rung.STREAM
        case Placement.CPU:
            return Rung.CPU_SMALLEST_TILE if tiled else Rung.CPU
        case _:
            assert_never(execution.placement)


def is_at_end(tried: Sequence[Attempt]) -> bool:
    """Whether nothing is worth another attempt.

    Arithmetic repeats itself: what was NaN twice in the same execution is NaN the next time, too.
    """
    repeats = bool(tried) and tried[-1].failure is Failure.NOT_FINITE and tried[-1] in tried[:-1]
    kills_count = sum(attempt.failure is Failure.KILLED for attempt in tried)
    return repeats or len(tried) - kills_count >= ATTEMPTS_MAX or kills_count >= KILLS_MAX


def next_rung(stage: Stage, tried: Sequence[Attempt], *, smallest_tile: int = 0) -> Rung | None:
    """Name the highest rung that may still be tried, or None when the attempts are used up."""
    if is_at_end(tried):
        return None
    rungs = LADDER[stage]
    floor = 0
    killed: set[int] = set()
    for attempt in tried:
        stood = rungs.index(rung_of(attempt.execution, smallest_tile))
        floor = max(floor, _below(stage, attempt, stood=stood, again=stood in killed))
        if attempt.failure is Failure.KILLED:
            killed.add(stood)
    return rungs[min(floor, len(rungs) - 1)]


def _below(stage: Stage, attempt: Attempt, *, stood: int, again: bool) -> int:
    """Number of the rung below the one where the attempt stood, by the class of its failure; `again`: an
    earlier one was killed on this rung.
    """
    match attempt.failure:
        case Failure.NOT_FINITE:
            # A smaller tile computes the same numbers: only the CPU in full precision is a cure.
            return max(stood + 1, LADDER[stage].index(Rung.CPU))
        case Failure.KILLED:
            # Whoever killed it, the placement was not at fault the first time. What was killed after it had
            # got on is not in the list at all (`forgiven`).
            return stood + 1 if again else stood
        case Failure.REFUSED | Failure.DIED | Failure.HANG | Failure.BLANK | Failure.ENGINE:
            return stood + 1
        case _:
            assert_never(attempt.failure)


def barred(
    stage: Stage, tried: Sequence[Attempt], *, executions: Iterable[Execution]
) -> Mapping[Execution, str]:
    """Say which executions the ladder has left behind, each with the reason in words."""
    if not tried:
        return {}
    known = tuple(executions)
    tiles = [execution.tile for execution in known if execution.tile]
    smallest_tile = min(tiles, default=0)
    rung = next_rung(stage, tried, smallest_tile=smallest_tile)
    rungs = LADDER[stage]
    floor = rungs.index(rung) if rung else len(rungs)
    last = tried[-1]
    why = f"left behind, because {last.failure.text()} {last.execution.text()}"
    return {execution: why for execution in known if rungs.index(rung_of(execution, smallest_tile)) < floor}


def climb(question: StageQuestion, tried: Sequence[Attempt]) -> Plan | Refusal:
    """Plan a stage below the rungs that failed.

    When the lower rungs fit nowhere (no RAM for the CPU, say), the ladder steps back and the best execution
    that fits is tried again: a picture later is better than none. At the ladder's end everything is barred.
    """
    assert isinstance(question.stage, Stage), "only stages have a ladder"
    if not tried:
        return choose(question)
    executions = tuple(option.execution for option in question.options)
    answer = choose(replace(question, barred=barred(question.stage, tried, executions=executions)))
    if isinstance(answer, Plan) or is_at_end(tried):
        return answer
    return choose(question)


def forgiven(tried: Sequence[Attempt], execution: Execution) -> list[Attempt]:
    """The attempts that still count after one that was killed from outside and had got on: those before it
    that were killed running like it had bad luck too.
    """
    return [
        attempt for attempt in tried if (attempt.failure, attempt.execution) != (Failure.KILLED, execution)
    ]


def is_delivered_blank(tried: Sequence[Attempt]) -> bool:
    """Whether a blank image was redone as often as it should be and is now delivered with a notice."""
    return sum(attempt.failure is Failure.BLANK for attempt in tried) >= BLANKS_MAX
