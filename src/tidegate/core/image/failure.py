"""Failures: the classes into which a failed attempt at a stage falls.

Owns Failure and Attempt. What to do about each is the ladder's part (`ladder.py`); who saw it, the worker's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import assert_never

from tidegate.core.stage import Execution


class Failure(enum.StrEnum):
    """Why an attempt at a stage failed."""

    REFUSED = "refused"  # An allocation was refused; everything of the call was given back.
    DIED = "died"  # The worker ended by itself: abort, segmentation fault, driver fault.
    KILLED = "killed"  # Somebody else ended the worker (SIGKILL, SIGTERM).
    HANG = "hang"  # No progress past the deadline; the worker was ended for it.
    NOT_FINITE = "not_finite"  # NaN or infinity in embeddings, step, latent or decoded floats.
    BLANK = "blank"  # A finite image of one colour.
    ENGINE = "engine"  # The engine reported an error of its own.

    def text(self) -> str:
        """Word it for a user."""
        match self:
            case Failure.REFUSED:
                return "memory was refused"
            case Failure.DIED:
                return "the worker died"
            case Failure.KILLED:
                return "the worker was killed from outside"
            case Failure.HANG:
                return "it made no progress past its deadline"
            case Failure.NOT_FINITE:
                return "the result held NaN or infinity"
            case Failure.BLANK:
                return "the image was of one colour"
            case Failure.ENGINE:
                return "the engine reported an error"
            case _:
                assert_never(self)

    def advice(self) -> str:
        """What a user can do about it when every attempt ended so; empty when there is nothing to advise."""
        if self is Failure.NOT_FINITE:
            return "Check the model file: download it again, or take another VAE or precision."
        return ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One failed attempt: how the stage ran and what became of it."""

    execution: Execution
    failure: Failure
