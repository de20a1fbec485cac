"""Synthetic checkpoints end to end: shapes from the real engine, files that our reader and the engine
accept.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tidegate.core.faults import CapacityError, ClientError
from tidegate.runtime.models.assembly import assemble
from tidegate.runtime.models.identity import Kind, identify
from tidegate.runtime.models.opening import read_model
from tidegate.runtime.models.shelf import open_model
from tidegate.synth.checkpoints import RECIPES, plan_files, prepare_folder, synthesise, write_file
from tidegate.synth.weights import WeightPool

FAMILIES = {"sd1-tiny": "SD 1.x Tiny UNet", "sd15": "SD 1.x", "sdxl": "SDXL", "sd3": "SD3.x"}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("weight_type", ["f16", "q4_K"])
def test_sparse_checkpoints_are_sound_and_take_no_space(tmp_path: Path, name: str, weight_type: str) -> None:
    paths = synthesise(name, tmp_path, weight_type=weight_type, sparse=True)
    model = open_model(paths[0])
    assert (model.identity.kind, model.identity.family) == (Kind.CHECKPOINT, FAMILIES[name])
    assert ("vae" in model.identity.components) == (name != "sd1-tiny")
    assert weight_type in model.file.dtypes
    assert model.file.size_bytes > 400 * 2**20
    assert sum(path.stat().st_blocks * 512 for path in paths) < 2 * 2**20
    assert assemble(model).paired == (("taesd",) if name == "sd1-tiny" else ())


def test_sd1_tiny_holds_no_vae_and_comes_with_a_taesd(sd1_tiny: Path, taesd: Path) -> None:
    assert identify(read_model(sd1_tiny)).components == ("text_encoder", "diffusion")
    assert identify(read_model(taesd)).kind is Kind.TAESD
    assert assemble(open_model(sd1_tiny)).files == {"model": str(sd1_tiny), "taesd": str(taesd)}


OPENED_BY_THE_ENGINE = """
import json, sys
from tidegate_engines import sdstage
checkpoint = sdstage.Checkpoint(json.loads(sys.argv[1]))
for component in ("text_encoder", "diffusion", "vae"):
    checkpoint.load(component, "cpu")
    checkpoint.release(component)
print(json.dumps([checkpoint.family, sorted(checkpoint.components)]))
"""


def test_the_engine_loads_every_tensor(sd1_tiny: Path, taesd: Path) -> None:
    files = json.dumps({"model": str(sd1_tiny), "taesd": str(taesd)})
    done = subprocess.run(
        [sys.executable, "-c", OPENED_BY_THE_ENGINE, files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    family, components = json.loads(done.stdout.strip().rpartition("\n")[2])
    assert family == identify(read_model(sd1_tiny)).family
    assert components == ["diffusion", "text_encoder", "vae"]


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    planned = next(file for file in plan_files("sd1-tiny", tmp_path) if file.path.name == "taesd.safetensors")

    def digest(seed: int) -> str:
        write_file(planned, WeightPool(seed), progress=lambda *_: None)
        return hashlib.sha256(planned.path.read_bytes()).hexdigest()

    first = digest(5)
    assert digest(6) != first == digest(5)
    assert list(tmp_path.iterdir()) == [planned.path]


def test_unknown_names_and_types_are_said(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as caught:
        synthesise("sd9", tmp_path)
    assert str(caught.value) == (
        "There is no synthetic checkpoint named 'sd9'. Known are sd1-tiny, sd15, sdxl, sd3, llama-tiny,"
        " llama3-tiny, qwen2vl-tiny, cohere2-tiny, lfm2-tiny, llama-100m."
    )
    with pytest.raises(ClientError) as caught:
        synthesise("sd15", tmp_path, weight_type="q9")
    assert str(caught.value) == (
        "Synthetic weights cannot be written as 'q9'."
        " Known types are f16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_K, q5_K, q6_K."
    )
    assert not list(tmp_path.iterdir())


@contextmanager
def files_at_most(size_bytes: int) -> Iterator[None]:
    """The kernel refuses longer files: what a full disk does in the midst of writing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with files_at_most(2**20), pytest.raises(ClientError) as caught:
        synthesise("sd1-tiny", tmp_path)
    path = tmp_path / "sd1-tiny.safetensors"
    assert (
        str(caught.value) == f"{path} cannot be written: {os.strerror(errno.EFBIG)}. Choose another folder."
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ClientError, match="cannot be written"):
        synthesise("sd1-tiny", tmp_path / "file", sparse=True)


def test_a_disk_too_small_is_said_before_writing(tmp_path: Path) -> None:
    with pytest.raises(CapacityError) as caught:
        prepare_folder(tmp_path / "new", needed_bytes=2**60)
    said = f"The disk of {tmp_path / 'new'} is too full: 1073741824.00 GiB are needed,"
    assert caught.value.message.startswith(said)
    assert (caught.value.code, caught.value.needed_bytes) == ("disk_full", 2**60)
