"""Header readers against files that are damaged, hostile or no models at all: one sentence, word for word."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from tidegate.core.faults import ClientError
from tidegate.runtime.models.model_file import Format, MetadataList
from tidegate.runtime.models.opening import read_model
from tidegate.runtime.models.tensor_types import GGML_TYPES
from tidegate.synth.layouts import Layout, gguf_layout, safetensors_layout

AGAIN = "Download the file again and compare its size and checksum with the source."
TENSORS = [("a.weight", (4, 32)), ("a.bias", (4,)), ("b.weight", (2, 3, 3, 3))]


def whole(layout: Layout) -> bytes:
    return layout.header + bytes(layout.size_bytes - len(layout.header))


SOUND_SAFETENSORS = whole(safetensors_layout(TENSORS, "f16"))
SOUND_GGUF = whole(gguf_layout(TENSORS, "q8_0", architecture="sd1", title="small"))


def safetensors(document: object, data_bytes: int = 0) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def entry(begin: int, end: int, *, dtype: object = "F16", shape: object = None) -> dict[str, object]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 2] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


def info(name: str, extents: tuple[int, ...], type_number: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, type_number, offset)


def gguf_file(
    infos: bytes = b"",
    *,
    count: int = 1,
    metadata: bytes = b"",
    entries: int = 0,
    version: int = 3,
    data_bytes: int = 0,
) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, count, entries) + metadata + infos
    return header + bytes(-len(header) % 32 + data_bytes)


def test_a_sound_safetensors_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    path.write_bytes(SOUND_SAFETENSORS)
    file = read_model(path)
    assert file.format is Format.SAFETENSORS
    assert [(t.name, t.dtype, t.shape, t.size_bytes) for t in file.tensors] == [
        ("a.weight", "f16", (4, 32), 256),
        ("a.bias", "f16", (4,), 8),
        ("b.weight", "f16", (2, 3, 3, 3), 108),
    ]
    assert file.tensors[0].offset_bytes == file.header_bytes
    assert file.tensor_bytes + file.header_bytes == file.size_bytes == len(SOUND_SAFETENSORS)
    assert file.metadata["source"] == "tidegate synth"


def test_a_sound_gguf_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(SOUND_GGUF)
    file = read_model(path)
    assert file.format is Format.GGUF
    assert [(t.name, t.dtype, t.shape, t.size_bytes) for t in file.tensors] == [
        ("a.weight", "q8_0", (4, 32), 136),
        ("a.bias", "f32", (4,), 16),
        ("b.weight", "f16", (2, 3, 3, 3), 108),
    ]
    assert file.dtypes == {"f16": 1, "f32": 1, "q8_0": 1}
    assert file.metadata_text("general.architecture") == "sd1"


def test_metadata_of_every_type_is_read_and_lists_are_only_counted(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "words.gguf", "llama")
    writer.add_array("words", ["one", "two", "three"])
    writer.add_array("numbers", [1, 2, 3, 4])
    writer.add_bool("yes", True)
    writer.add_float32("half", 0.5)
    writer.add_int64("less", -7)
    writer.add_uint8("small", 255)
    writer.add_tensor_info("t", (32,), np.dtype(np.float32), 128)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    path = tmp_path / "words.gguf"
    path.write_bytes(path.read_bytes() + bytes(256))
    metadata = read_model(path).metadata
    assert metadata["words"] == MetadataList("text", 3)
    assert metadata["numbers"] == MetadataList("i32", 4)
    assert (metadata["yes"], metadata["half"], metadata["less"], metadata["small"]) == (True, 0.5, -7, 255)


def test_the_table_of_ggml_types_agrees_with_the_gguf_package() -> None:
    for number, block in GGML_TYPES.items():
        known = gguf.GGMLQuantizationType(number)
        assert known.name.lower() == block.name.lower()
        assert gguf.GGML_QUANT_SIZES[known] == (block.block_count, block.block_bytes)


# name, bytes, code, what is said after the path, remedy
NO_MODELS: list[tuple[str, bytes, str, str, str]] = [
    ("empty.safetensors", b"", "model_empty", " is empty.", AGAIN),
    (
        "notes.safetensors", b"this is a text, not a model\n", "not_a_model",
        " is not a model file: it is a text file.", "Give a safetensors or GGUF file.",
    ),
    (
        "page.gguf", b"<!DOCTYPE html><html>not found</html>", "not_a_model",
        " is not a model file: it is an HTML page, perhaps the error page of a download.",
        "Give a safetensors or GGUF file.",
    ),
    (
        "pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "not_a_model",
        " is not a model file: it is a Git LFS pointer, a note that stands for the real file.",
        "Fetch the file itself with `git lfs pull`, or download it.",
    ),
    (
        "old.ckpt", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00.", "pickle_not_supported",
        " is a PyTorch pickle, which can run code when it is opened and is not supported.",
        "Use a safetensors or GGUF version of this model.",
    ),
    (
        "new.ckpt", b"PK\x03\x04\0\0\0\0archive/data.pkl", "pickle_not_supported",
        " is a PyTorch pickle, which can run code when it is opened and is not supported.",
        "Use a safetensors or GGUF version of this model.",
    ),
    (
        "zeros.safetensors", bytes(4096), "not_a_model",
        " is not a model file: it is filled with zeros, perhaps an unfinished download.",
        "Give a safetensors or GGUF file.",
    ),
    (
        "noise.bin", bytes(range(255, 0, -1)) * 9, "not_a_model",
        " is not a model file: it is of an unknown binary format.", "Give a safetensors or GGUF file.",
    ),
    ("five.safetensors", b"\x10\0\0\0\0", "model_truncated", " is cut short inside its header.", AGAIN),
    ("magic.gguf", b"GGUF", "model_truncated", " is cut short inside its header.", AGAIN),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "raw", "code", "said", "remedy"), NO_MODELS, ids=[row[0] for row in NO_MODELS]
)
def test_what_is_no_model_is_named(
    tmp_path: Path, name: str, raw: bytes, code: str, said: str, remedy: str
) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    refused(path, code, said, remedy)


def refused(path: Path, code: str, said: str, remedy: str) -> None:
    with pytest.raises(ClientError) as caught:
        read_model(path)
    assert (caught.value.code, caught.value.message, caught.value.remedy) == (code, f"{path}{said}", remedy)


def code_of(said: str) -> str:
    return "model_truncated" if said.startswith(" is cut short") else "model_corrupt"


SAFETENSORS_DAMAGE: list[tuple[str, bytes, str]] = [
    ("not JSON", safetensors(b'{"a": [1, 2'),
     " is damaged: its header is not valid JSON."),
    ("not UTF-8", safetensors(b'{"\xff\xfe": 1}'),
     " is damaged: its header is not valid JSON."),
    ("a list", safetensors(b" [1]"),
     " is damaged: its header is not a JSON object."),
    ("a tower", safetensors(b'{"a":' + b"[" * 100_000),
     " is damaged: its header is not valid JSON."),
    ("NaN", safetensors(b'{"a": NaN}'),
     " is damaged: its header is not valid JSON."),
    ("long number", safetensors(b'{"a": ' + b"9" * 5000 + b"}"),
     " is damaged: its header is not valid JSON."),
    ("no tensors", safetensors({}),
     " is damaged: it holds no tensors."),
    ("same name", safetensors(b'{"a":{},"a":{}}'),
     " is damaged: its header names 'a' twice."),
    ("no entry", safetensors({"a": 1}),
     " is damaged: the entry of tensor 'a' is not an object."),
    ("no type", safetensors({"a": {"shape": [1], "data_offsets": [0, 2]}}, 2),
     " is damaged: tensor 'a' has no type."),
    ("no name", safetensors({"": entry(0, 2)}, 2),
     " is damaged: '' is not a tensor name."),
    ("bad name", safetensors({"a\nb": entry(0, 2)}, 2),
     " is damaged: 'a\\x0ab' is not a tensor name."),
    ("negative shape", safetensors({"a": entry(0, 2, shape=[-1])}, 2),
     " is damaged: the shape of tensor 'a' makes no sense."),
    ("fractional shape", safetensors({"a": entry(0, 2, shape=[1.0])}, 2),
     " is damaged: the shape of tensor 'a' makes no sense."),
    ("true shape", safetensors({"a": entry(0, 2, shape=[True])}, 2),
     " is damaged: the shape of tensor 'a' makes no sense."),
    ("overflowing shape", safetensors({"a": entry(0, 2, shape=[2**40, 2**40])}, 2),
     " is damaged: the shape of tensor 'a' makes no sense."),
    ("too many dimensions", safetensors({"a": entry(0, 2, shape=[1] * 9)}, 2),
     " is damaged: the shape of tensor 'a' makes no sense."),
    ("offsets reversed", safetensors({"a": entry(2, 0, shape=[1])}, 2),
     " is damaged: the offsets of tensor 'a' make no sense."),
    ("one offset", safetensors({"a": {"dtype": "F16", "shape": [1], "data_offsets": [0]}}, 2),
     " is damaged: the offsets of tensor 'a' make no sense."),
    ("size against shape", safetensors({"a": entry(0, 4, shape=[1])}, 4),
     " is damaged: tensor 'a' takes 4 bytes where its shape needs 2."),
    ("overlap", safetensors({"a": entry(0, 4), "b": entry(2, 6)}, 6),
     " is damaged: tensor 'b' overlaps another one."),
    ("gap", safetensors({"a": entry(0, 4), "b": entry(6, 8)}, 8),
     " is damaged: there is a gap before tensor 'b'."),
    ("tail", safetensors({"a": entry(0, 4)}, 9),
     " is damaged: 5 bytes follow its last tensor."),
    ("metadata of numbers", safetensors({"__metadata__": {"a": 1}, "a": entry(0, 2)}, 2),
     " is damaged: its metadata is not a map of texts."),
    ("huge header", struct.pack("<Q", 2**62) + b"{}",
     " is damaged or not a model: the header length is 4611686018427387904, and at most 8388608 is read."),
    ("cut in the header", SOUND_SAFETENSORS[:100],
     " is cut short inside its header."),
    ("cut in the data", SOUND_SAFETENSORS[:-1],
     f" is cut short: its header declares {len(SOUND_SAFETENSORS)} bytes, the file has"
     f" {len(SOUND_SAFETENSORS) - 1} (1 missing)."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "said"),
    [row[1:] for row in SAFETENSORS_DAMAGE],
    ids=[row[0] for row in SAFETENSORS_DAMAGE],
)
def test_damaged_safetensors(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw)
    refused(path, code_of(said), said, AGAIN)


def test_an_unknown_type_is_named_with_another_remedy(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(safetensors({"a": entry(0, 2, dtype="F4\n")}, 2))
    remedy = "Use another version of this model (f16, bf16, f32, or a GGUF quantisation)."
    refused(path, "unknown_dtype", " holds tensor 'a' in the unknown type 'F4\\x0a'.", remedy)


ONE = info("a", (32,), 0, 0)
LIST_OF_LISTS = text("k") + struct.pack("<IIQ", 9, 9, 1)
GGUF_DAMAGE: list[tuple[str, bytes, str]] = [
    ("no tensors", gguf_file(count=0),
     " is damaged: it holds no tensors."),
    ("count of tensors", gguf_file(count=2**60),
     f" is damaged or not a model: the number of tensors is {2**60}, and at most 100000 is read."),
    ("count of entries", gguf_file(entries=2**60),
     f" is damaged or not a model: the number of metadata entries is {2**60}, and at most 20000 is read."),
    ("length of a name", gguf_file(struct.pack("<Q", 2**63)),
     f" is damaged or not a model: the length of a tensor name is {2**63}, and at most 1024 is read."),
    ("same key",
     gguf_file(ONE, entries=2, metadata=(text("k") + struct.pack("<IB", 0, 1)) * 2, data_bytes=128),
     " is damaged: its metadata names 'k' twice."),
    ("unknown value",
     gguf_file(ONE, entries=1, metadata=text("k") + struct.pack("<I", 77), data_bytes=128),
     " is damaged: its metadata holds the unknown type 77."),
    ("list of lists", gguf_file(ONE, entries=1, metadata=LIST_OF_LISTS, data_bytes=128),
     " is damaged: its metadata holds a list of the unknown type 9."),
    ("long list",
     gguf_file(ONE, entries=1, metadata=text("k") + struct.pack("<IIQ", 9, 8, 2**50), data_bytes=128),
     f" is damaged or not a model: the length of a list is {2**50}, and at most 2000000 is read."),
    ("alignment 3",
     gguf_file(ONE, entries=1, metadata=text("general.alignment") + struct.pack("<II", 4, 3),
     data_bytes=128),
     " is damaged: its alignment is not a power of two."),
    ("alignment 0", gguf_file(ONE, entries=1, metadata=text("general.alignment") + struct.pack("<II", 4, 0),
     data_bytes=128),
     " is damaged: its alignment is not a power of two."),
    ("alignment is a text",
     gguf_file(ONE, entries=1, metadata=text("general.alignment") + struct.pack("<I", 8)
     + text("32"), data_bytes=128),
     " is damaged: its alignment is not a power of two."),
    ("dimensions", gguf_file(info("a", (1,) * 6, 0, 0)),
     " is damaged: tensor 'a' has 6 dimensions."),
    ("shape overflows", gguf_file(info("a", (2**40, 2**40), 0, 0)),
     " is damaged: the shape of tensor 'a' makes no sense."),
    ("half a block", gguf_file(info("a", (33,), 8, 0)),
     " is damaged: the rows of tensor 'a' are no multiple of the 32 values of a q8_0 block."),
    ("same tensor", gguf_file(ONE + info("a", (32,), 0, 128), count=2, data_bytes=256),
     " is damaged: it holds two tensors named 'a'."),
    ("overlap", gguf_file(ONE + info("b", (32,), 0, 64), count=2, data_bytes=256),
     " is damaged: tensor 'b' overlaps another one."),
    ("not aligned", gguf_file(info("a", (32,), 0, 1), data_bytes=256),
     " is damaged: tensor 'a' is not aligned."),
    ("cut in the header", SOUND_GGUF[:150],
     " is cut short inside its header."),
    ("cut in the data", gguf_file(ONE, data_bytes=100),
     " is cut short: its header declares 192 bytes, the file has 164 (28 missing)."),
    ("offset beyond", gguf_file(info("a", (32,), 0, 2**62), data_bytes=128),
     f" is cut short: its header declares {2**62 + 192} bytes, the file has 192 ({2**62} missing)."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "said"), [row[1:] for row in GGUF_DAMAGE], ids=[row[0] for row in GGUF_DAMAGE]
)
def test_damaged_gguf(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    refused(path, code_of(said), said, AGAIN)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (gguf_file(ONE, version=1), " is GGUF version 1, which is not supported."),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 0), " is a big-endian GGUF file, which is not supported."),
    ],
)
def test_other_versions_of_gguf(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(raw)
    refused(path, "gguf_version_not_supported", said, "Convert it again to GGUF version 3 (little-endian).")


def test_a_ggml_type_that_was_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(gguf_file(info("a", (32,), 4, 0), data_bytes=128))
    remedy = "Use another version of this model (f16, bf16, f32, or a GGUF quantisation)."
    refused(path, "unknown_dtype", " holds tensor 'a' in the unknown type 'ggml type 4'.", remedy)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.gguf", "model_not_found", ": there is no such file.", "Check the path.")
    said = " is a folder, and folders in diffusers layout are not supported yet."
    refused(tmp_path, "model_is_folder", said, "Give a single safetensors or GGUF file.")
    os.mkfifo(tmp_path / "pipe.safetensors")
    said, remedy = " is not a regular file.", "Give a safetensors or GGUF file."
    refused(tmp_path / "pipe.safetensors", "model_unreadable", said, remedy)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(ClientError, match="cannot be read"):
            read_model(tmp_path / "socket")
