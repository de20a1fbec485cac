"""Fuzzing of the header readers: whatever the bytes, the answer is a sound `ModelFile` or one
`ClientError`.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.core.faults import ClientError
from tidegate.runtime.models.identity import identify
from tidegate.runtime.models.opening import read_model
from tidegate.synth.layouts import gguf_layout, safetensors_layout

TENSORS = [("model.diffusion_model.input_blocks.0.0.weight", (8, 4, 3, 3)), ("a.weight", (4, 32)), ("b", ())]
LAYOUTS = (
    safetensors_layout(TENSORS, "f16"),
    gguf_layout(TENSORS, "q8_0", architecture="sd1", title="fuzz"),
)
SOUND = [layout.header + bytes(layout.size_bytes - len(layout.header)) for layout in LAYOUTS]

junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
numbers = st.integers(0, 2**12) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F16", "F32", "BF16", "I64", "X"]) | junk,
        "shape": st.lists(numbers, max_size=5) | junk,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | junk,
    },
)


def judged(raw: bytes, suffix: str) -> None:
    """Read the bytes as a file; a sound answer must keep what `ModelFile` promises."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fuzz" + suffix)
        path.write_bytes(raw)
        try:
            file = read_model(path)
        except ClientError as fault:
            assert str(path) in fault.message
            assert "\n" not in str(fault)
            assert fault.code and fault.remedy
            str(fault).encode("utf-8")
            return
    assert identify(file).words
    position = file.header_bytes
    for tensor in sorted(file.tensors, key=lambda t: (t.offset_bytes, t.size_bytes)):
        assert position <= tensor.offset_bytes
        position = tensor.offset_bytes + tensor.size_bytes
    assert position <= file.size_bytes == len(raw)


@given(raw=st.binary(max_size=600), suffix=st.sampled_from([".safetensors", ".gguf", ".ckpt"]))
@settings(max_examples=200)
def test_any_bytes(raw: bytes, suffix: str) -> None:
    judged(raw, suffix)


@given(raw=st.binary(max_size=400), counts=st.tuples(numbers, numbers), version=st.sampled_from([2, 3]))
@settings(max_examples=200)
def test_any_bytes_behind_a_gguf_mark(raw: bytes, counts: tuple[int, int], version: int) -> None:
    judged(b"GGUF" + struct.pack("<IQQ", version, *counts) + raw, ".gguf")


@given(
    document=st.dictionaries(st.text(max_size=12), entries | junk, max_size=5),
    data_bytes=st.integers(0, 4096),
)
@settings(max_examples=300)
def test_any_json_header(document: dict[str, object], data_bytes: int) -> None:
    raw = json.dumps(document).encode()
    judged(struct.pack("<Q", len(raw)) + raw + bytes(data_bytes), ".safetensors")


@given(
    sound=st.sampled_from(SOUND),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    kept=st.floats(0, 1),
)
@settings(max_examples=400)
def test_sound_files_with_changed_bytes_and_cut(
    sound: bytes, changes: list[tuple[float, int]], kept: float
) -> None:
    raw = bytearray(sound)
    for place, value in changes:
        raw[int(place * len(raw))] = value
    judged(bytes(raw[: int(kept * len(raw))]), ".gguf" if sound.startswith(b"GGUF") else ".safetensors")


def test_sound_files_cut_at_every_length(tmp_path: Path) -> None:
    for sound, suffix in zip(SOUND, (".safetensors", ".gguf"), strict=True):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(sound)
        for length in reversed(range(len(sound))):
            os.truncate(path, length)
            try:
                read_model(path)
            except ClientError as fault:
                assert fault.code in ("model_truncated", "model_empty", "not_a_model"), (length, fault)
            else:
                # Only padding was cut off: the last tensor is whole.
                assert suffix == ".gguf" and length > len(sound) - 32
