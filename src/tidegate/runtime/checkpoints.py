"""Checkpoints: the folder in which a job's finished work survives a crash.

    <state>/jobs/<key>/job.json                what was asked, and the hash of each file below
                       embeddings.safetensors  after encode
                       init-<seed>.safetensors after encode_image
                       tape-<seed>             during denoise: every output of the diffusion model so far
                       latent-<seed>.safetensors after denoise

The key is a hash of the model's files and of the request, so the same command finds its own work again, on
any device. A worker writes an artifact whole or not at all; its hash is journalled in job.json before the
next stage begins. On the way back an artifact counts only when the engine build, its fingerprint and its hash
are right; anything else is made again, and said.

Owns the folder. The format of an artifact is `tidegate.wire.artifacts`; when to save is `oneshot`'s part.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tidegate.core.faults import ClientError
from tidegate.core.stage import Execution, Stage
from tidegate.runtime.order import Wish
from tidegate.wire import artifacts

STATE_VARIABLE: Final = "TIDEGATE_STATE"
# Unfinished jobs of the past; the oldest is forgotten when there are more. A 1024 px SDXL job is some 60 MB.
JOBS_MAX: Final = 32
# The same image made twice at once gets a second folder. More than this is no accident.
TWINS_MAX: Final = 8
_JOURNAL: Final = "job.json"
_LOCK: Final = ".lock"


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """One journalled artifact: whose hash it should have and how its stage was run."""

    stage: Stage
    sha256: str
    execution: Execution


class Journal(msgspec.Struct, kw_only=True):
    """The contents of job.json. `wish` is what the user typed, to make the same image again."""

    version: int = 1
    key: str
    engine_build: str = ""
    wish: Wish | None = None
    saved: dict[str, Saved] = msgspec.field(default_factory=dict)


def state_folder() -> Path:
    """Where unfinished jobs are kept: $TIDEGATE_STATE, or the user's state folder. Raises OSError."""
    if named := os.environ.get(STATE_VARIABLE):
        return Path(named)
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:  # no $HOME, and no entry among the users either
        raise OSError("there is no home folder") from error
    return Path(base) / "tidegate"


class JobFolder:
    """The saved state of one job, held by one process at a time."""

    def __init__(self, path: Path, *, journal: Journal, lock: int, is_lasting: bool) -> None:
        self.path = path
        self.journal = journal
        self.is_lasting = is_lasting
        self._lock = lock

    @classmethod
    def take(cls, key: str, *, resumes: bool) -> JobFolder:
        """Take the folder of this job, or of the first twin that is free. Old work goes unless `resumes`.

        Raises OSError when nothing can be created there; see `passing`. Raises ClientError when the work to
        resume is in the hands of another process.
        """
        jobs = state_folder() / "jobs"
        jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths = [jobs / (f"{key}.{twin}" if twin else key) for twin in range(TWINS_MAX)]
        folder = (cls._found(paths, key) if resumes else None) or cls._emptied(paths, key)
        _forget_oldest(jobs)
        return folder

    @classmethod
    def _found(cls, paths: Sequence[Path], key: str) -> JobFolder | None:
        """Take the first free folder that holds work."""
        held = False
        for path in paths:
            if _read(path, key) is None:
                continue
            lock = _locked(path)
            if lock is None:
                held = True
            elif journal := _read(path, key):  # read again: whoever held it may have changed it
                return cls(path, journal=journal, lock=lock, is_lasting=True)
            else:
                os.close(lock)
        if held:
            raise being_made()
        return None

    @classmethod
    def _emptied(cls, paths: Sequence[Path], key: str) -> JobFolder:
        """Take the first free folder, and throw away what is in it."""
        for path in paths:
            path.mkdir(exist_ok=True, mode=0o700)
            lock = _locked(path)
            if lock is not None:
                _empty(path)
                return cls(path, journal=Journal(key=key), lock=lock, is_lasting=True)
        raise OSError(f"this image is being made {TWINS_MAX} times already")

    @classmethod
    def passing(cls, key: str) -> JobFolder:
        """A folder that is gone with this process, for a machine on which nothing can be saved for longer."""
        path = Path(tempfile.mkdtemp(prefix="tidegate-"))
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return cls(path, journal=Journal(key=key), lock=lock, is_lasting=False)

    def fingerprint(self, stage: Stage, *, seed: int) -> dict[str, str]:
        """What is written into an artifact, and must be found in it again."""
        return {
            "job": self.journal.key,
            "engine_build": self.journal.engine_build,
            "stage": str(stage),
            "seed": str(seed),
        }

    def artifact(self, stage: Stage, *, seed: int) -> Path:
        """Where a stage leaves its result; the text is encoded once for all seeds of a batch."""
        match stage:
            case Stage.ENCODE:
                return self.path / "embeddings.safetensors"
            case Stage.ENCODE_IMAGE:
                return self.path / f"init-{seed}.safetensors"
            case Stage.DENOISE | Stage.DECODE:
                return self.path / f"latent-{seed}.safetensors"

    def tape(self, *, seed: int) -> Path:
        """The tape of one image."""
        return self.path / f"tape-{seed}"

    def begin(self, engine_build: str, *, wish: Wish | None) -> list[str]:
        """Say who works on the job now. Returns what had to be thrown away, in words."""
        thrown = []
        if self.journal.engine_build not in ("", engine_build):
            _empty(self.path)
            self.journal = Journal(key=self.journal.key)
            thrown.append("The saved work is of another engine build and is made again.")
        self.journal.engine_build = engine_build
        self.journal.wish = wish
        return thrown

    def record(self, stage: Stage, *, seed: int, sha256: str, execution: Execution) -> None:
        """Journal a finished stage. Raises OSError; the work itself is safe in its artifact already."""
        name = self.artifact(stage, seed=seed).name
        self.journal.saved[name] = Saved(stage=stage, sha256=sha256, execution=execution)
        self.save()

    def save(self) -> None:
        """Write job.json."""
        data = msgspec.json.format(msgspec.json.encode(self.journal), indent=1)
        artifacts.write_atomically(self.path / _JOURNAL, data)

    def found(self, stage: Stage, *, seed: int) -> Saved | None:
        """The journalled result of a stage if it is whole and ours; None when there is none.

        Raises `UnreadableArtifact` when there is one that must not be used.
        """
        path = self.artifact(stage, seed=seed)
        saved = self.journal.saved.get(path.name)
        if saved is None or saved.stage is not stage:
            return None
        if artifacts.sha256_of(path) != saved.sha256:
            raise artifacts.UnreadableArtifact(f"{path.name} is not what was written")
        if artifacts.fingerprint_of(path) != self.fingerprint(stage, seed=seed):
            raise artifacts.UnreadableArtifact(f"{path.name} belongs to another job")
        return saved

    def forget(self, stage: Stage, *, seed: int) -> None:
        """Throw a result away, and for denoise its tape too: what led to it cannot be trusted."""
        path = self.artifact(stage, seed=seed)
        self.journal.saved.pop(path.name, None)
        with contextlib.suppress(OSError):  # on a full or read-only disk it stays, unjournalled and unused
            path.unlink(missing_ok=True)
            if stage is Stage.DENOISE:
                self.tape(seed=seed).unlink(missing_ok=True)

    @property
    def has_work(self) -> bool:
        """Whether something is saved that would be made again without it."""
        return bool(self.journal.saved) or any(self.path.glob("tape-*"))

    def remove(self) -> None:
        """The job is done: nothing of it is needed any more."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let go of the folder; what is in it stays, unless it was a passing one."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if not self.is_lasting:
            shutil.rmtree(self.path, ignore_errors=True)


def latest_wish() -> Wish | None:
    """What the job was asked for that was interrupted last, or None. Raises ClientError.

    A job that another process is making was not interrupted; when there is no other, that is said.
    """
    held = False
    try:
        paths = _by_age(state_folder() / "jobs")
    except OSError:  # where nothing can be saved, nothing is
        return None
    for path in paths:
        journal = _read(path, path.name.partition(".")[0])
        if journal is None or journal.wish is None:
            continue
        if not _is_held(path):
            return journal.wish
        held = True
    if held:
        raise being_made()
    return None


def being_made() -> ClientError:
    """The one sentence about work that another process has in its hands."""
    return ClientError(
        "The job to resume is being made by another process right now.",
        remedy="Wait until it has ended, or end it first.",
        code="job_running",
    )


def _by_age(jobs: Path) -> list[Path]:
    """Job folders, the youngest first."""
    try:
        found = [(entry.stat().st_mtime_ns, entry) for entry in jobs.iterdir() if entry.is_dir()]
    except OSError:  # there are none
        return []
    return [entry for _, entry in sorted(found, reverse=True)]


def _locked(path: Path) -> int | None:
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_held(path: Path) -> bool:
    try:
        lock = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody can hold it
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _read(path: Path, key: str) -> Journal | None:
    try:
        journal = msgspec.json.decode((path / _JOURNAL).read_bytes(), type=Journal)
    except (OSError, msgspec.MsgspecError, AssertionError, RecursionError):
        # No journal, a damaged one (or one nested without end), or one of another version: nothing to trust.
        return None
    return journal if journal.key == key and journal.version == Journal(key="").version else None


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name != _LOCK:
            entry.unlink()


def _forget_oldest(jobs: Path) -> None:
    for path in _by_age(jobs)[JOBS_MAX:]:
        lock = _locked(path)
        if lock is not None:  # a running job is not old, however long it takes
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
