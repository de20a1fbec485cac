"""Weights: random numbers that keep a network's activations finite, as much of them as a file needs.

Owns the scale of each tensor and the bytes it is written as. All tensors are cut from one seeded pool of
normal numbers, at an offset that depends on the seed and the tensor's name: a gigabyte is written at the
speed of the disk, memory stays bounded, and a tensor's content never depends on its neighbours in the file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from tidegate.runtime.models.tensor_types import GGML_NUMBERS, GGML_TYPES
from tidegate.synth.quantising import PACKED_TYPES, Floats, pack

# A prime number of blocks of 256 values (the largest block of any type): rows repeat only after a whole turn.
POOL_BLOCKS = 16_381
BLOCK_VALUES = 256
POOL_VALUES = POOL_BLOCKS * BLOCK_VALUES
# 16 packed pools are 134 MB as f16; a checkpoint has some forty different scales.
PACKED_POOLS_MAX = 16
# With these, SD1, SDXL and SD3 give finite latents and pictures that are not of one colour.
GAIN = 0.7
SPREAD = 0.02
TINY_DECODER = "decoder.layers."
COLOURS = 3
PICTURE_GAIN = 1.2
# Language models: attention strong enough that a text depends on all before it, and answers so decided
# (logits deviate by 4) that a silent token, whose logit is 0, is drawn less than once in ten thousand.
LANGUAGE_PREFIXES = ("blk.", "v.", "mm.", "token_embd", "output")
LANGUAGE_GAIN = 1.6
# Small beside what the layers add: else a model whose answers are its embeddings repeats what it is told.
EMBEDDING_SPREAD = 0.05
DOWN_GAIN = 1.0
LOGIT_GAIN = 4.0


class WeightPool:
    """Makes the bytes of any tensor, for one seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._normal: Floats = np.random.default_rng(seed).standard_normal(POOL_VALUES, dtype=np.float32)
        self._packed = lru_cache(maxsize=PACKED_POOLS_MAX)(self._pack_pool)

    def pieces(self, name: str, shape: tuple[int, ...], type_name: str) -> Iterator[memoryview]:
        """The tensor's bytes in order, in pieces of at most one pool."""
        block = GGML_TYPES[GGML_NUMBERS[type_name]]
        spread, centre = spread_and_centre(name, shape)
        pool = self._packed(type_name, spread, centre)
        left_bytes = math.prod(shape) // block.block_count * block.block_bytes
        turn_bytes = len(pool) // POOL_BLOCKS
        start_bytes = self._start_block(name) * turn_bytes
        while left_bytes > 0:
            piece = pool[start_bytes : start_bytes + left_bytes]
            yield piece
            left_bytes -= len(piece)
            start_bytes = 0

    def _start_block(self, name: str) -> int:
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        return int.from_bytes(digest[:8], "little") % POOL_BLOCKS

    def _pack_pool(self, type_name: str, spread: float, centre: float) -> memoryview:
        values = self._normal * np.float32(spread) + np.float32(centre)
        if type_name in PACKED_TYPES:
            return memoryview(pack(values, type_name).tobytes())
        return memoryview(values.astype({"f16": np.float16, "f32": np.float32}[type_name]).tobytes())


def spread_and_centre(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard deviation and mean of a tensor's values: norms around 1, biases around 0, matrices by their
    inputs.
    """
    if name.startswith(TINY_DECODER) and shape[:1] == (COLOURS,):
        # Its last layer answers from 0 to 1 and cuts the rest off: aim at the middle, and use the range.
        return (SPREAD, 0.5) if len(shape) == 1 else (PICTURE_GAIN / math.sqrt(math.prod(shape[1:])), 0.0)
    if name.startswith(LANGUAGE_PREFIXES) and len(shape) > 1:
        return _language_spread(name, shape), 0.0
    if len(shape) <= 1:
        return SPREAD, 1.0 if name.endswith("weight") else 0.0
    if "embedding" in name:
        return SPREAD, 0.0
    return GAIN / math.sqrt(math.prod(shape[1:])), 0.0


def _language_spread(name: str, shape: tuple[int, ...]) -> float:
    if name.startswith("token_embd"):
        return EMBEDDING_SPREAD
    if "position_embd" in name:
        return 0.3
    gain = LANGUAGE_GAIN
    if name.startswith("output"):
        gain = LOGIT_GAIN
    elif name.startswith(("v.", "mm.")) or "ffn_down" in name:
        gain = DOWN_GAIN
    return gain / math.sqrt(math.prod(shape[1:]))
