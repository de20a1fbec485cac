"""Prices: prior milliseconds for loading and running a stage, used until measured costs are known.

Owns the priors. They only have to order the candidates sensibly and be right within a factor of a few; the
catalog replaces them by what it measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from tidegate.core.planner.option import Footprint, StageOption
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import DecodeMode, Execution, Placement, Stage

# Latent pixels of overlap that a tile shares with its neighbours: a quarter on each side.
OVERLAP_QUARTERS = 2
# A home card computes these stages so many times as fast as two to eight cores do. Text encoders are bound by
# memory; decoding 512 x 512 pixels was seen to take 70 s on two cores.
_CPU_FACTORS: Mapping[Stage, int] = {
    Stage.ENCODE: 15,
    Stage.DENOISE: 60,
    Stage.DECODE: 200,
    Stage.ENCODE_IMAGE: 200,
}
# Weights of the usual decoder. A tiny autoencoder has a fortieth of them, and is that much faster.
_DECODER_BYTES = 95 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much a stage has to do: size in latent pixels and sampling steps."""

    latent_height: int
    latent_width: int
    steps_count: int = 1
    load_mib_per_s: int = 4_000  # From page cache to card on PCIe 4; a measured link speed replaces it.


def option_of(
    stage: Stage, execution: Execution, *, footprint: Footprint, work: Work, is_card_slow: bool = False
) -> StageOption:
    """Price one execution with the priors; a slow card computes like the CPU, as a virtual one does."""
    is_slow = is_card_slow or execution.placement is Placement.CPU
    run_ms = _run_ms(stage, execution, footprint=footprint, work=work, is_slow=is_slow)
    load_ms = footprint.weights_bytes * 1_000 // (work.load_mib_per_s * MIB)
    return StageOption(execution, footprint, run_ms=run_ms, load_ms=load_ms)


def _run_ms(stage: Stage, execution: Execution, *, footprint: Footprint, work: Work, is_slow: bool) -> int:
    run_ms = _on_card_ms(stage, footprint.weights_bytes, work=work)
    if execution.mode is DecodeMode.TILED:
        run_ms = run_ms * _tiling_percent(execution.tile, work) // 100
    if is_slow:
        run_ms *= _CPU_FACTORS[stage]
    match execution.placement:
        case Placement.CARD | Placement.CPU:
            return run_ms
        case Placement.STREAM:
            passes = work.steps_count * 2 if stage is Stage.DENOISE else 1
            moved_bytes = max(0, footprint.weights_bytes - execution.budget_bytes // 2)
            return run_ms + passes * moved_bytes * 1_000 // (work.load_mib_per_s * MIB)
        case _:
            assert_never(execution.placement)


def _on_card_ms(stage: Stage, weights_bytes: int, *, work: Work) -> int:
    pixels = work.latent_height * work.latent_width
    match stage:
        case Stage.ENCODE:
            return 20 + weights_bytes * 50 // GIB
        case Stage.DENOISE:
            # SD1.5 (1.6 GiB) at 64 x 64 latent pixels: some 100 ms a step with guidance.
            return work.steps_count * (5 + weights_bytes * pixels * 15 // (GIB * 1024))
        case Stage.DECODE | Stage.ENCODE_IMAGE:
            # 512 x 512 pixels: some 330 ms.
            share_bytes = min(_DECODER_BYTES, max(_DECODER_BYTES // 40, weights_bytes))
            return 10 + pixels * 8 * share_bytes // (100 * _DECODER_BYTES)
        case _:
            assert_never(stage)


def _tiling_percent(tile: int, work: Work) -> int:
    """Work of all tiles with their overlap, in percent of the whole image; at least 105."""
    step = max(1, tile - tile * OVERLAP_QUARTERS // 4)
    down = max(1, -(-(work.latent_height - tile) // step) + 1)
    across = max(1, -(-(work.latent_width - tile) // step) + 1)
    pixels = max(1, work.latent_height * work.latent_width)
    return max(105, down * across * tile * tile * 100 // pixels)
