"""Results: which stages of an order are finished, and where their artifacts are.

Owns the table of results of one run: taken up from an earlier process, made by a living worker and saved, or
held by a worker that could not save them. The files are the job folder's (`checkpoints`); making a result is
the `relay`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate.core.stage import Execution, Stage
from tidegate.runtime.checkpoints import JobFolder
from tidegate.runtime.order import ImageOrder
from tidegate.wire import artifacts, messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished stage: its file, how it was made, and the only worker that has it if it was not saved."""

    path: Path
    execution: Execution
    unsaved_by: int = 0


class Results:
    """Finished stages by stage and image; the text is encoded once for a whole batch."""

    def __init__(self, order: ImageOrder, folder: JobFolder) -> None:
        self._order = order
        self._folder = folder
        self._found: dict[tuple[Stage, int], Result] = {}

    def needs(self, stage: Stage) -> tuple[Stage, ...]:
        """The stages whose results a stage starts from."""
        match stage:
            case Stage.ENCODE | Stage.ENCODE_IMAGE:
                return ()
            case Stage.DENOISE:
                before = (Stage.ENCODE, Stage.ENCODE_IMAGE)
                return tuple(known for known in self._order.stages if known in before)
            case Stage.DECODE:
                return (Stage.DENOISE,)

    def image_of(self, stage: Stage, image: int) -> int | None:
        """The image that a stage works for; None when it serves all of them."""
        return None if stage is Stage.ENCODE else image

    def seed_of(self, stage: Stage, image: int) -> int:
        """The seed under which a stage's artifact is kept."""
        return self._order.seed_of(0 if stage is Stage.ENCODE else image)

    def available(self, stage: Stage, image: int, *, incarnation: int) -> Result | None:
        """A result that can be used now; one that died with its worker is forgotten."""
        key = self._key(stage, image)
        result = self._found.get(key)
        if result is not None and result.unsaved_by not in (0, incarnation):
            del self._found[key]
            return None
        return result

    def get(self, stage: Stage, image: int) -> Result | None:
        """A result as it stands in the table."""
        return self._found.get(self._key(stage, image))

    def keep(self, stage: Stage, image: int, *, result: Result) -> None:
        """Enter a result."""
        self._found[self._key(stage, image)] = result

    def take_up(self, stage: Stage, image: int) -> Result | None:
        """Use what an earlier process saved; what is damaged is forgotten and raises UnreadableArtifact."""
        seed = self.seed_of(stage, image)
        if self.get(stage, image) is not None:
            return None
        try:
            saved = self._folder.found(stage, seed=seed)
        except artifacts.UnreadableArtifact:
            self._folder.forget(stage, seed=seed)
            raise
        if saved is None:
            return None
        result = Result(path=self._folder.artifact(stage, seed=seed), execution=saved.execution)
        self.keep(stage, image, result=result)
        return result

    def forget_missing(self, stage: Stage, image: int) -> None:
        """Forget those results that `stage` starts from and whose files are gone."""
        for needed in self.needs(stage):
            result = self.get(needed, image)
            if result is not None and not result.unsaved_by and not result.path.is_file():
                del self._found[self._key(needed, image)]

    def forget(self, stage: Stage, image: int) -> None:
        """Throw away what a stage left behind, its tape included."""
        self._found.pop(self._key(stage, image), None)
        self._folder.forget(stage, seed=self.seed_of(stage, image))

    def command(self, stage: Stage, image: int, *, how: Execution) -> messages.RunStage:
        """The command that runs a stage on the results before it."""
        seed = self.seed_of(stage, image)
        makes_artifact = stage is not Stage.DECODE
        return messages.RunStage(
            serial=0,
            stage=stage,
            request=self._order.request_of(image),
            execution=how,
            inputs=self._inputs(stage, image),
            output=str(self._folder.artifact(stage, seed=seed)) if makes_artifact else "",
            tape=str(self._folder.tape(seed=seed)) if stage is Stage.DENOISE else "",
            fingerprint=self._folder.fingerprint(stage, seed=seed),
        )

    def _inputs(self, stage: Stage, image: int) -> dict[str, str]:
        roles = {Stage.ENCODE: "embeddings", Stage.ENCODE_IMAGE: "init_latent", Stage.DENOISE: "latent"}
        return {
            roles[needed]: str(self._found[self._key(needed, image)].path) for needed in self.needs(stage)
        }

    def _key(self, stage: Stage, image: int) -> tuple[Stage, int]:
        return (stage, 0 if stage is Stage.ENCODE else image)

    def journal(self, stage: Stage, image: int, *, sha256: str, how: Execution) -> Callable[[], None]:
        """The writing that makes a saved result count after a crash. Raises OSError when it is done."""
        seed = self.seed_of(stage, image)
        return lambda: self._folder.record(stage, seed=seed, sha256=sha256, execution=how)
