"""Tensor types: how many bytes a value takes in either format.

Owns the two tables of element types. They are facts of the formats (the safetensors specification;
`ggml_type` and `type_traits` of ggml), not of any engine's support for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class BlockType:
    """A ggml type: `block_count` values are stored together in `block_bytes`."""

    name: str
    block_count: int
    block_bytes: int

    @property
    def quantised(self) -> bool:
        """Whether values share a scale within a block."""
        return self.block_count > 1


SAFETENSORS_BITS = MappingProxyType(
    {
        "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
        "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
        "U32": 32, "I32": 32, "F32": 32,
        "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    }
)  # fmt: skip

# The numbers are those written into GGUF files; gaps are types that were withdrawn.
GGML_TYPES = MappingProxyType(
    {
        0: BlockType("f32", 1, 4),
        1: BlockType("f16", 1, 2),
        2: BlockType("q4_0", 32, 18),
        3: BlockType("q4_1", 32, 20),
        6: BlockType("q5_0", 32, 22),
        7: BlockType("q5_1", 32, 24),
        8: BlockType("q8_0", 32, 34),
        9: BlockType("q8_1", 32, 40),
        10: BlockType("q2_K", 256, 84),
        11: BlockType("q3_K", 256, 110),
        12: BlockType("q4_K", 256, 144),
        13: BlockType("q5_K", 256, 176),
        14: BlockType("q6_K", 256, 210),
        15: BlockType("q8_K", 256, 292),
        16: BlockType("iq2_xxs", 256, 66),
        17: BlockType("iq2_xs", 256, 74),
        18: BlockType("iq3_xxs", 256, 98),
        19: BlockType("iq1_s", 256, 50),
        20: BlockType("iq4_nl", 32, 18),
        21: BlockType("iq3_s", 256, 110),
        22: BlockType("iq2_s", 256, 82),
        23: BlockType("iq4_xs", 256, 136),
        24: BlockType("i8", 1, 1),
        25: BlockType("i16", 1, 2),
        26: BlockType("i32", 1, 4),
        27: BlockType("i64", 1, 8),
        28: BlockType("f64", 1, 8),
        29: BlockType("iq1_m", 256, 56),
        30: BlockType("bf16", 1, 2),
        34: BlockType("tq1_0", 256, 54),
        35: BlockType("tq2_0", 256, 66),
        39: BlockType("mxfp4", 32, 17),
        40: BlockType("nvfp4", 64, 36),
    }
)

GGML_NUMBERS = MappingProxyType({block_type.name: number for number, block_type in GGML_TYPES.items()})
