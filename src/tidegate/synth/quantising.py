"""Quantising: numbers packed as ggml's blocks.

Owns `pack`. The simple types come from the `gguf` package; it can only unpack K-quants, so three of them are
packed here, by plain rounding against each block's extremes. That is coarser than ggml's search, which is of
no consequence for random weights; the layout is what has to be right, and is tested against the package's
unpacking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import gguf
import numpy as np
from numpy.typing import NDArray

from tidegate.runtime.models.tensor_types import GGML_NUMBERS

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
SUPER_BLOCK = 256


def pack(values: Floats, type_name: str) -> Bytes:
    """Pack a flat array (its length a multiple of the type's block) into bytes of a ggml type."""
    if type_name in _K_PACKERS:
        return _K_PACKERS[type_name](values.reshape(-1, SUPER_BLOCK)).reshape(-1)
    packed = gguf.quantize(values.reshape(1, -1), gguf.GGMLQuantizationType(GGML_NUMBERS[type_name]))
    return np.ascontiguousarray(packed).reshape(-1).view(np.uint8)


def _halves(values: Floats) -> Bytes:
    """One f16 per block, as two bytes."""
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)


def _inverse(values: Floats) -> Floats:
    """1/x, and 0 for 0: a block of equal values then packs to zeros."""
    return np.divide(np.float32(1), values, out=np.zeros_like(values), where=values != 0)


def _scales_and_minimums(blocks: Floats, levels: int) -> tuple[Bytes, Bytes, Bytes, NDArray[np.uint8]]:
    """For q4_K and q5_K: d, dmin, the 12 bytes of eight 6-bit scales and minimums, and the quants."""
    parts = blocks.reshape(-1, 8, 32)
    lowest = np.minimum(parts.min(axis=2), 0)
    step = (parts.max(axis=2) - lowest) / levels
    d = (step.max(axis=1) / 63).astype(np.float16).astype(np.float32)
    d_min = (-lowest.min(axis=1) / 63).astype(np.float16).astype(np.float32)
    scales = np.clip(np.rint(step * _inverse(d)[:, None]), 0, 63).astype(np.uint8)
    minimums = np.clip(np.rint(-lowest * _inverse(d_min)[:, None]), 0, 63).astype(np.uint8)
    real_step = scales * d[:, None]
    real_low = minimums * d_min[:, None]
    quants = np.rint((parts + real_low[:, :, None]) * _inverse(real_step)[:, :, None])
    packed = np.empty((len(blocks), 12), dtype=np.uint8)
    # ggml's layout: the first four of each in six bits, the upper two bits carry the other four's upper bits.
    packed[:, 0:4] = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    packed[:, 4:8] = minimums[:, :4] | (minimums[:, 4:] >> 4) << 6
    packed[:, 8:12] = (scales[:, 4:] & 15) | (minimums[:, 4:] & 15) << 4
    return _halves(d), _halves(d_min), packed, np.clip(quants, 0, levels).astype(np.uint8)


def _low_nibbles(quants: NDArray[np.uint8]) -> Bytes:
    """Eight sub-blocks of 32, packed two and two: the even one low, the odd one high."""
    low: Bytes = (quants & 15).astype(np.uint8)
    pairs: Bytes = (low[:, 0::2] | low[:, 1::2] << 4).astype(np.uint8)
    return pairs.reshape(len(quants), 128)


def _pack_q4_k(blocks: Floats) -> Bytes:
    d, d_min, scales, quants = _scales_and_minimums(blocks, 15)
    return np.concatenate([d, d_min, scales, _low_nibbles(quants)], axis=1)


def _pack_q5_k(blocks: Floats) -> Bytes:
    d, d_min, scales, quants = _scales_and_minimums(blocks, 31)
    high = np.zeros((len(blocks), 32), dtype=np.uint8)
    for part in range(8):
        high |= (quants[:, part] >> 4) << part
    return np.concatenate([d, d_min, scales, high, _low_nibbles(quants)], axis=1)


def _pack_q6_k(blocks: Floats) -> Bytes:
    parts = blocks.reshape(-1, 16, 16)
    step = np.abs(parts).max(axis=2) / 31
    d = (step.max(axis=1) / 127).astype(np.float16).astype(np.float32)
    scales = np.clip(np.rint(step * _inverse(d)[:, None]), 0, 127).astype(np.int8)
    real_step = scales * d[:, None]
    signed = np.rint(parts * _inverse(real_step.astype(np.float32))[:, :, None])
    quants = (np.clip(signed, -32, 31) + 32).astype(np.uint8).reshape(len(blocks), 2, 4, 32)
    # Two halves of 128 values; in each, four rows of 32 share the bytes of low nibbles and of upper bit
    # pairs.
    low = (quants[:, :, 0:2] & 15) | (quants[:, :, 2:4] & 15) << 4
    high = np.zeros((len(blocks), 2, 32), dtype=np.uint8)
    for row in range(4):
        high |= (quants[:, :, row] >> 4) << (2 * row)
    return np.concatenate(
        [low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), _halves(d)], axis=1
    )


_K_PACKERS: Mapping[str, Callable[[Floats], Bytes]] = MappingProxyType(
    {"q4_K": _pack_q4_k, "q5_K": _pack_q5_k, "q6_K": _pack_q6_k}
)
PACKED_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", *_K_PACKERS)
