"""Undisturbed pictures: what each request gives when one worker makes it in peace, on the CPU.

Owns that one worker and its memory of hashes. It knows nothing of servers: what the storm's images are
compared with must not come from the thing that is tested.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # Any: JSON as it is sent to the server

from tidegate.core.stage import Component, DecodeMode, Execution, Placement, Stage
from tidegate.runtime.worker import ImageWorker
from tidegate.wire.messages import ImageRequest, Open, Progress, RunStage

_CPU = Execution(Placement.CPU)
_COMPONENTS = {
    Stage.ENCODE: Component.TEXT_ENCODER,
    Stage.DENOISE: Component.DIFFUSION,
    Stage.DECODE: Component.VAE,
}


class Undisturbed:
    """Makes each picture once."""

    def __init__(self, model: Path, *, known: dict[str, str]) -> None:
        self._files = {"model": str(model), "taesd": str(model.with_name("taesd.safetensors"))}
        self._known = known
        self._worker: ImageWorker | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="undisturbed-")

    def picture(self, wish: Mapping[str, Any], *, tile: int) -> str:
        """The hash of the pixels of a request, decoded whole (0) or in tiles."""
        flash = wish["model"] != "plain"
        names = ("prompt", "width", "height", "steps", "sampler", "seed", "cfg")
        request = ImageRequest(**{name: wish[name] for name in names})
        key = json.dumps([{name: wish[name] for name in names}, flash, tile], sort_keys=True)
        if key not in self._known:
            self._known[key] = self._made(request, flash=flash, tile=tile)
        return self._known[key]

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._folder.cleanup()

    def _made(self, request: ImageRequest, *, flash: bool, tile: int) -> str:
        worker = self._worker = self._worker or ImageWorker.start()
        worker.open(Open(serial=0, files=self._files, device="CPU", threads=1, flash_attention=flash))
        tiled = Execution(Placement.CPU, DecodeMode.TILED, tile) if tile else _CPU
        inputs: dict[str, str] = {}
        for stage, role in ((Stage.ENCODE, "embeddings"), (Stage.DENOISE, "latent"), (Stage.DECODE, "")):
            how = tiled if stage is Stage.DECODE else _CPU
            worker.load(_COMPONENTS[stage], how, with_encoder=False)
            output = str(Path(self._folder.name) / stage.value)
            command = RunStage(
                serial=0, stage=stage, request=request, execution=how, inputs=inputs, output=output
            )
            worker.run(command, on_progress=_unheard)
            worker.release(_COMPONENTS[stage])
            inputs = {role: output}
        pixels = os.pread(worker.exchange, request.width * request.height * 3, 0)
        return hashlib.sha256(pixels).hexdigest()


def _unheard(_progress: Progress) -> None:
    """Nobody watches."""
