"""Artifacts are there whole or not at all, and tell whose they are without being read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tidegate.wire import artifacts
from tidegate.workers import arrays


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    artifacts.write_atomically(path, b"old")
    code = (
        "import resource, sys; from pathlib import Path; from tidegate.wire import artifacts\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "artifacts.write_atomically(Path(sys.argv[1]), b'new' * 100)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "File too large" in ended.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"], "the half-written file is removed"


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    assert artifacts.write_atomically(path, b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert artifacts.sha256_of(path) == hashlib.sha256(b"abc").hexdigest()


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    latent = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    tokens = np.arange(7, dtype=np.int32)
    path = tmp_path / "a.safetensors"
    arrays.save(path, {"latent": latent, "tokens": tokens}, fingerprint={"job": "x", "seed": "7"})
    found = arrays.load(path)
    assert found["latent"].tobytes() == latent.tobytes() and found["latent"].dtype == np.float32
    assert found["tokens"].tolist() == tokens.tolist() and found["tokens"].dtype == np.int32
    assert artifacts.fingerprint_of(path) == {"job": "x", "seed": "7"}


def test_equal_arrays_give_equal_files(tmp_path: Path) -> None:
    latent = np.ones((1, 4, 8, 8), dtype=np.float32)
    fingerprint = {name: name for name in ("job", "engine_build", "stage", "seed", "size")}
    hashes = {
        arrays.save(tmp_path / f"{turn}.safetensors", {"b": latent, "a": latent}, fingerprint=fingerprint)
        for turn in range(8)
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        b"\x08\0\0\0\0\0\0\0not json",
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x02\0\0\0\0\0\0\0[]",
    ],
)
def test_a_damaged_artifact_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(artifacts.UnreadableArtifact):
        artifacts.fingerprint_of(path)


def test_a_missing_artifact_is_refused(tmp_path: Path) -> None:
    for ask in (artifacts.fingerprint_of, artifacts.sha256_of, arrays.load):
        with pytest.raises(artifacts.UnreadableArtifact):
            ask(tmp_path / "nothing.safetensors")


def test_pixels_travel_through_the_exchange() -> None:
    pixels = np.random.default_rng(2).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    exchange = os.memfd_create("test")
    try:
        digest = arrays.write_pixels(exchange, pixels)
        assert digest == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert (arrays.read_pixels(exchange, width=7, height=5) == pixels).all()
        with pytest.raises(artifacts.UnreadableArtifact):
            arrays.read_pixels(exchange, width=8, height=5)
    finally:
        os.close(exchange)


def test_the_longest_name_there_is_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    artifacts.write_atomically(path, b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
