"""Packed weights and written headers, checked by readers that are not ours: the gguf and safetensors
packages.
"""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from tidegate.runtime.models.opening import read_model
from tidegate.runtime.models.tensor_types import GGML_NUMBERS
from tidegate.synth.layouts import Layout, gguf_layout, safetensors_layout, stored_type
from tidegate.synth.quantising import PACKED_TYPES, pack
from tidegate.synth.weights import POOL_BLOCKS, WeightPool, spread_and_centre

TENSORS = [
    ("model.diffusion_model.input_blocks.1.1.proj.weight", (320, 512)),
    ("model.diffusion_model.input_blocks.0.0.weight", (8, 4, 3, 3)),
    ("model.diffusion_model.time_embed.0.weight", (64, 256)),
    ("model.diffusion_model.norm.weight", (320,)),
    ("model.diffusion_model.norm.bias", (320,)),
]
# Root mean square error against the values' deviation, as measured; q4 has 16 levels over about six
# deviations.
ERROR_MAX = {"q4_0": 0.10, "q4_1": 0.09, "q5_0": 0.05, "q5_1": 0.045, "q8_0": 0.006}
ERROR_MAX |= {"q4_K": 0.09, "q5_K": 0.045, "q6_K": 0.025}


def written(path: Path, layout: Layout, seed: int = 0) -> Path:
    pool = WeightPool(seed)
    with path.open("wb") as out:
        out.write(layout.header)
        for tensor in layout.tensors:
            out.writelines(pool.pieces(tensor.name, tensor.shape, tensor.type_name))
            out.write(bytes(tensor.padding_bytes))
    assert path.stat().st_size == layout.size_bytes
    return path


@pytest.mark.parametrize("type_name", PACKED_TYPES)
def test_packed_values_come_back(type_name: str) -> None:
    values = np.random.default_rng(1).standard_normal(256 * 64, dtype=np.float32) * np.float32(0.03)
    values[:256] = 0
    packed = pack(values, type_name)
    back = gguf.dequantize(packed.reshape(1, -1), gguf.GGMLQuantizationType(GGML_NUMBERS[type_name])).reshape(
        -1
    )
    assert np.sqrt(np.mean((back - values) ** 2)) / 0.03 < ERROR_MAX[type_name]
    assert not back[:256].any()


@pytest.mark.parametrize("type_name", ["q8_0", "q4_K"])
def test_a_gguf_file_is_read_alike_by_the_gguf_package(tmp_path: Path, type_name: str) -> None:
    path = written(tmp_path / "a.gguf", gguf_layout(TENSORS, type_name, architecture="sd1", title="t"))
    ours = read_model(path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert set(theirs) == set(ours.by_name)
    for name, tensor in theirs.items():
        mine = ours.by_name[name]
        assert tensor.tensor_type.name.lower() == mine.dtype.lower()
        assert tuple(int(n) for n in reversed(tensor.shape)) == mine.shape
        assert (tensor.data_offset, tensor.n_bytes) == (mine.offset_bytes, mine.size_bytes)


def test_a_safetensors_file_is_read_alike_by_the_safetensors_package(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", safetensors_layout(TENSORS, "f16"))
    with safe_open(path, framework="numpy") as theirs:
        assert set(theirs.keys()) == set(read_model(path).by_name)
        for name, shape in TENSORS:
            values = theirs.get_tensor(name).astype(np.float32)
            spread, centre = spread_and_centre(name, shape)
            assert values.shape == shape
            assert abs(values.mean() - centre) < 5 * spread / math.sqrt(values.size)
            assert abs(values.std() / spread - 1) < 0.2


def test_only_matrices_are_quantised() -> None:
    kinds = {name: stored_type(name, shape, "q4_K") for name, shape in TENSORS}
    assert list(kinds.values()) == ["q4_K", "f16", "f16", "f32", "f32"]
    assert stored_type("a.weight", (64, 320), "q4_K") == "f16"
    assert stored_type("a.weight", (64, 320), "q4_0") == "q4_0"


def test_a_tensor_depends_on_seed_and_name_alone() -> None:
    def content(seed: int, name: str) -> bytes:
        return b"".join(WeightPool(seed).pieces(name, (64, 64), "f16"))

    assert content(1, "a") == content(1, "a")
    assert content(1, "a") != content(2, "a")
    assert content(1, "a") != content(1, "b")


def test_a_tensor_larger_than_the_pool_is_whole_and_its_rows_differ() -> None:
    shape = (POOL_BLOCKS * 2, 320)
    raw = b"".join(WeightPool(0).pieces("big.weight", shape, "f16"))
    rows = np.frombuffer(raw, dtype=np.float16).reshape(shape)
    assert len(np.unique(rows[:, :4], axis=0)) > POOL_BLOCKS * 0.7
