"""Tide levels: how much of a language model is on the card, and the steps between.

    HOT       weights, KV cache and compute buffers on the card
    WARM      weights on the card, conversation state saved in RAM
    PARTIAL   the most layers that fit on the card, the rest computed by the CPU
    COLD      nothing on the card, the process has ended

Owns Level, Tide (levels and the movements between them) and its TRANSITIONS. Who moves when: `tide.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class Level(enum.StrEnum):
    """Where a language model can rest."""

    HOT = "hot"
    WARM = "warm"
    PARTIAL = "partial"
    COLD = "cold"


class Tide(enum.StrEnum):
    """Levels and movements."""

    HOT = "hot"
    WARM = "warm"
    PARTIAL = "partial"
    COLD = "cold"
    RISING = "rising"  # From COLD: a process starts and loads weights.
    RETURNING = "returning"  # From WARM: a new context, state restored.
    EBBING = "ebbing"  # To WARM: requests are suspended, state is saved, context freed.
    SINKING = "sinking"  # To COLD: the process is ending.


TRANSITIONS: Mapping[Tide, tuple[Tide, ...]] = MappingProxyType(
    {
        Tide.COLD: (Tide.RISING,),
        Tide.RISING: (Tide.HOT, Tide.PARTIAL, Tide.SINKING, Tide.COLD),
        Tide.HOT: (Tide.EBBING, Tide.SINKING, Tide.COLD),
        Tide.PARTIAL: (Tide.EBBING, Tide.SINKING, Tide.COLD),
        Tide.EBBING: (Tide.WARM, Tide.SINKING, Tide.COLD),
        Tide.WARM: (Tide.RETURNING, Tide.SINKING, Tide.COLD),
        Tide.RETURNING: (Tide.HOT, Tide.PARTIAL, Tide.SINKING, Tide.COLD),
        Tide.SINKING: (Tide.COLD,),
    }
)
SERVING = (Tide.HOT, Tide.PARTIAL)
# A model that is wished there does not rise for its requests; they wait.
HELD_DOWN = (Level.WARM, Level.COLD)
MOVING = (Tide.RISING, Tide.RETURNING, Tide.EBBING, Tide.SINKING)
