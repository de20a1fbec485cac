"""Candidates: which executions of a stage are worth asking predictions for, best first.

Owns the order of preference and its bound. It knows no free bytes beyond the streaming budget's ceiling;
whether an execution fits is decided by `filters.py`, which one is best by `scores.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import DecodeMode, Execution, Placement, Stage

CANDIDATES_MAX = 64
TILES = (256, 192, 128, 96, 64, 48, 32, 24, 16)
# Below this size a text encoder runs on the CPU in seconds; streaming it would buy nothing.
STREAM_ENCODER_MIN_BYTES = 2 * GIB
# A smaller budget cannot hold one transformer block of the models we know plus its compute buffer.
BUDGET_MIN_BYTES = 64 * MIB
BUDGET_SIXTEENTHS = (16, 12, 8, 4, 2, 1)  # Of the smaller of weights and room.


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """What must be known to name the executions of a stage.

    `latent_height` and `latent_width` are in latent pixels; `weights_bytes` those of the stage's component;
    `room_bytes` is the most the card could ever give (0: there is no card).
    """

    latent_height: int
    latent_width: int
    weights_bytes: int
    room_bytes: int


def candidates_for(stage: Stage, facts: StageFacts) -> tuple[Execution, ...]:
    """Name the executions to predict, in order of preference; never more than CANDIDATES_MAX."""
    match stage:
        case Stage.ENCODE:
            budgets = _budgets(facts) if facts.weights_bytes >= STREAM_ENCODER_MIN_BYTES else ()
            found = [*_on_card(facts), *budgets, Execution(Placement.CPU)]
        case Stage.DENOISE:
            found = [*_on_card(facts), *_budgets(facts), Execution(Placement.CPU)]
        case Stage.DECODE | Stage.ENCODE_IMAGE:
            tiles = _tiles(facts)
            on_card = [_tiled(Placement.CARD, tile) for tile in tiles] if facts.room_bytes else []
            smallest = [_tiled(Placement.CPU, tile) for tile in tiles[-1:]]
            found = [*_on_card(facts), *on_card, Execution(Placement.CPU), *smallest]
        case _:
            assert_never(stage)
    assert len(found) <= CANDIDATES_MAX, "the enumeration is bounded by its own tables"
    return tuple(found)


def _on_card(facts: StageFacts) -> tuple[Execution, ...]:
    return (Execution(Placement.CARD),) if facts.room_bytes else ()


def _budgets(facts: StageFacts) -> tuple[Execution, ...]:
    ceiling_bytes = min(facts.weights_bytes, facts.room_bytes)
    sizes = [ceiling_bytes * part // 16 // MIB * MIB for part in BUDGET_SIXTEENTHS]
    useful = dict.fromkeys(size for size in sizes if size >= BUDGET_MIN_BYTES)
    return tuple(Execution(Placement.STREAM, budget_bytes=size) for size in useful)


def _tiles(facts: StageFacts) -> tuple[int, ...]:
    # A tile as large as the latent would be the whole image with more work.
    return tuple(tile for tile in TILES if tile < max(facts.latent_height, facts.latent_width))


def _tiled(placement: Placement, tile: int) -> Execution:
    return Execution(placement, DecodeMode.TILED, tile)
