"""The proof: an image whose worker is killed in mid-sampling comes out like the one nobody disturbed.

Owns making the same image twice, the second time with `kill -9` of the worker between two steps, and the
comparison. Both are made by the one-shot, with the real engine; the judgement is the hash of the pixels.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tidegate.core.faults import ClientError
from tidegate.core.stage import Execution, Stage
from tidegate.runtime import model_choice, oneshot
from tidegate.runtime.order import ImageOrder
from tidegate.runtime.registry import gathered
from tidegate.runtime.settings import Settings
from tidegate.wire.messages import ImageRequest

Say = Callable[[str], None]
# Small, so that it takes seconds on a CPU; steps enough to have a middle.
SIDE, STEPS = 64, 4
WORKER_MODULE = "tidegate.workers.image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Both hashes, the worker that was ended, and whether the first run really was undisturbed."""

    model: str
    undisturbed_sha256: str
    disturbed_sha256: str
    killed_pid: int
    was_calm: bool
    notices: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether exactly the second run lost a worker and the pixels are identical."""
        return self.was_calm and self.killed_pid > 0 and self.undisturbed_sha256 == self.disturbed_sha256


class _Disturber:
    """Listens to a run and kills its worker once, after the step `kills_at`; None disturbs nobody."""

    def __init__(self, say: Say, *, kills_at: int | None = None) -> None:
        self._say = say
        self._kills_at = kills_at
        self._stage: Stage | None = None
        self.killed_pid = 0

    def stage_began(self, stage: Stage, *, image: int, count: int, how: Execution) -> None:
        """Remember which stage it is."""
        assert 0 <= image < count
        self._stage = stage
        self._say(f"  {stage} {how.text()}")

    def step_done(self, step: int, steps: int, *, card_bytes: int) -> None:
        """Kill in the middle of sampling."""
        assert card_bytes >= 0
        if self._stage is not Stage.DENOISE or step != self._kills_at or self.killed_pid:
            return
        for child in psutil.Process().children():
            if WORKER_MODULE in child.cmdline():
                self.killed_pid = child.pid
                self._say(f"  step {step} of {steps}: kill -9 {child.pid}")
                os.kill(child.pid, signal.SIGKILL)
                return

    def told(self, text: str) -> None:
        """Pass a notice on."""
        self._say(f"  {text}")


def prove(settings: Settings, say: Say) -> Proof:
    """Make the image twice and compare. Raises Fault when it cannot be made at all. Takes a minute on a
    CPU.
    """
    registry = gathered(settings)
    if not registry.entries:
        raise ClientError("There is no image model to prove it with.", remedy="Name a folder with --models.")
    entry = registry.find("")
    with tempfile.TemporaryDirectory(prefix="tidegate-proof-") as folder:
        main = entry.files.get("model") or entry.files["diffusion_model"]
        given = {role: path for role, path in entry.files.items() if path != main}
        files = model_choice.chosen_files(str(main), given)
        order = ImageOrder(
            files=files.files,
            fingerprints=model_choice.fingerprints(files),
            model_name=entry.name,
            request=ImageRequest(
                prompt="a lighthouse at dusk", width=SIDE, height=SIDE, steps=STEPS, seed=2_026
            ),
            outputs=(Path(folder) / "undisturbed.png",),
            device=settings.cards[0].device,
            threads=entry.threads,
        )
        say(f"An image with {entry.name}, undisturbed:")
        calm = oneshot.make(order, _Disturber(say))
        say("The same, its worker killed in mid-sampling:")
        disturber = _Disturber(say, kills_at=STEPS // 2)
        again = oneshot.make(replace(order, outputs=(Path(folder) / "disturbed.png",)), disturber)
    return Proof(
        model=entry.name,
        undisturbed_sha256=calm.images[0].pixels_sha256,
        disturbed_sha256=again.images[0].pixels_sha256,
        killed_pid=disturber.killed_pid,
        was_calm=all(record.attempts == 1 for record in calm.stages),
        notices=tuple(again.notices),
    )
