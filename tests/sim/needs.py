"""Needs: what stages really take in this world, as the world's predictor tells it and its workers live by it.

Owns the true footprints. They are made up from the seed's model sizes by a rule of thumb; what matters is
that the predictor and the workers share them, and that the core learns them only by events.
"""

from __future__ import annotations

from tidegate.core.planner.option import Footprint, placed
from tidegate.core.quantity import KIB, MIB
from tidegate.core.stage import Execution, Stage

PER_PIXEL = {
    Stage.ENCODE: 0,
    Stage.DENOISE: 40 * KIB,
    Stage.DECODE: 416 * KIB,
    Stage.ENCODE_IMAGE: 212 * KIB,
}
FLOOR = 4 * MIB


def need(stage: Stage, execution: Execution, *, weights_bytes: int, pixels: int) -> Footprint:
    """Bytes that a stage takes: weights and computing, on the card or in RAM."""
    side = execution.tile
    compute = FLOOR + PER_PIXEL[stage] * (min(pixels, side * side) if side else pixels)
    return placed(execution, weights_bytes=weights_bytes, compute_bytes=compute)
