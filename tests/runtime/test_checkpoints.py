"""The job folder: found again by its key, whole or not used, one holder at a time, never more than a few."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tidegate.core.faults import ClientError
from tidegate.core.stage import Execution, Placement, Stage
from tidegate.runtime import checkpoints
from tidegate.runtime.checkpoints import JobFolder, latest_wish
from tidegate.runtime.model_choice import models_folder
from tidegate.runtime.order import Wish
from tidegate.wire import artifacts

CPU = Execution(Placement.CPU)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(checkpoints.STATE_VARIABLE, str(tmp_path))
    return tmp_path


def finished(key: str = "k") -> Path:
    """A folder in which the text is encoded, left behind as a crash leaves it."""
    folder = JobFolder.take(key, resumes=False)
    folder.begin("build", wish=Wish(prompt=f"wish of {key}"))
    path = folder.artifact(Stage.ENCODE, seed=0)
    text = (
        '{"__metadata__":' + json.dumps(artifacts.metadata_of(folder.fingerprint(Stage.ENCODE, seed=0))) + "}"
    )
    sha256 = artifacts.write_atomically(path, len(text).to_bytes(8, "little") + text.encode())
    folder.record(Stage.ENCODE, seed=0, sha256=sha256, execution=CPU)
    folder.release()
    return folder.path


def test_finished_work_is_found_again() -> None:
    finished()
    folder = JobFolder.take("k", resumes=True)
    assert folder.begin("build", wish=None) == []
    saved = folder.found(Stage.ENCODE, seed=0)
    assert saved is not None and saved.execution == CPU
    assert folder.found(Stage.DENOISE, seed=0) is None
    folder.remove()
    assert not folder.path.exists()


def test_without_resume_old_work_goes() -> None:
    finished()
    folder = JobFolder.take("k", resumes=False)
    assert not folder.has_work and [path.name for path in folder.path.iterdir()] == [".lock"]
    folder.remove()


def test_a_changed_file_is_not_what_was_written() -> None:
    path = finished() / "embeddings.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    folder = JobFolder.take("k", resumes=True)
    folder.begin("build", wish=None)
    with pytest.raises(artifacts.UnreadableArtifact, match="is not what was written"):
        folder.found(Stage.ENCODE, seed=0)
    folder.remove()


def test_a_file_of_another_job_is_not_ours() -> None:
    stranger = finished("other") / "embeddings.safetensors"
    ours = finished("k")
    (ours / "embeddings.safetensors").write_bytes(stranger.read_bytes())
    folder = JobFolder.take("k", resumes=True)
    folder.journal.saved["embeddings.safetensors"] = checkpoints.Saved(
        stage=Stage.ENCODE, sha256=artifacts.sha256_of(stranger), execution=CPU
    )
    with pytest.raises(artifacts.UnreadableArtifact, match="belongs to another job"):
        folder.found(Stage.ENCODE, seed=0)
    folder.remove()


def test_another_engine_build_starts_again() -> None:
    finished()
    folder = JobFolder.take("k", resumes=True)
    assert folder.begin("new build", wish=None) == [
        "The saved work is of another engine build and is made again."
    ]
    assert not folder.has_work
    folder.remove()


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b'{"key": "other"}', b'{"key": "k", "version": 9}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_journal_is_no_journal(garbage: bytes) -> None:
    (finished() / "job.json").write_bytes(garbage)
    folder = JobFolder.take("k", resumes=True)
    assert not folder.has_work
    folder.remove()


def test_two_runs_of_one_job_do_not_share_a_folder() -> None:
    first, second = JobFolder.take("k", resumes=True), JobFolder.take("k", resumes=True)
    assert first.path != second.path
    second.remove()
    first.remove()


def test_the_wish_that_was_interrupted_last_is_known() -> None:
    assert latest_wish() is None
    for age, key in enumerate(("young", "old")):
        os.utime(finished(key), ns=(0, 10**18 - age * 10**9))
    wish = latest_wish()
    assert wish is not None and wish.prompt == "wish of young"


def test_work_in_a_twin_is_found_when_the_first_folder_is_free_again(state: Path) -> None:
    first = JobFolder.take("k", resumes=False)
    twin = finished()
    assert twin.name == "k.1"
    first.remove()
    folder = JobFolder.take("k", resumes=True)
    assert folder.path == twin and folder.has_work
    folder.remove()
    assert list((state / "jobs").iterdir()) == []


def test_a_job_that_is_being_made_is_not_resumed() -> None:
    finished()
    folder = JobFolder.take("k", resumes=True)
    with pytest.raises(ClientError, match="being made by another process"):
        JobFolder.take("k", resumes=True)
    with pytest.raises(ClientError, match="being made by another process"):
        latest_wish()
    os.utime(finished("older"), ns=(0, 10**18))
    wish = latest_wish()
    assert wish is not None and wish.prompt == "wish of older"
    folder.remove()


def test_without_a_home_there_is_nothing_saved_and_no_way_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (checkpoints.STATE_VARIABLE, "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    for name in ("TIDEGATE_MODELS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert models_folder() == Path("/usr/local/share/tidegate/models")
    assert latest_wish() is None
    with pytest.raises(OSError, match="there is no home folder"):
        JobFolder.take("k", resumes=False)


def test_old_jobs_are_forgotten(state: Path) -> None:
    for age in range(checkpoints.JOBS_MAX + 3):
        os.utime(finished(f"{age:03d}"), ns=(0, 10**18 + age * 10**9))
    folder = JobFolder.take("new", resumes=False)
    names = {path.name for path in (state / "jobs").iterdir()}
    assert len(names) == checkpoints.JOBS_MAX and "000" not in names and "new" in names
    folder.remove()


def test_a_passing_folder_goes_with_its_holder() -> None:
    folder = JobFolder.passing("k")
    (folder.path / "latent-1.safetensors").touch()
    folder.release()
    assert not folder.path.exists()
