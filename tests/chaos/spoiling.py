"""The image worker with bad luck: now and then NaN, infinity, one colour, or a crash.

The engine, and all that finds such numbers, is the real one. Orders are `STAGE:WHAT`, see `doubles`. Takes
effect when it is imported, before the worker begins.
"""

from __future__ import annotations

import hashlib
import os
import signal

import numpy as np
from tests.chaos import doubles

from tidegate.core.stage import Stage
from tidegate.wire import messages
from tidegate.workers import arrays, stages

_VALUES = {"nan": np.nan, "inf": np.inf}


class Unlucky(stages.Engine):
    """Spoils what goes into the decoder, what comes out of the others, or the pixels."""

    def _keep(self, command: messages.RunStage, result: arrays.Arrays) -> tuple[str, str]:
        if word := doubles.take_one(f"{command.stage.value}:"):
            for array in result.values():
                array.flat[0] = _VALUES[word.partition(":")[2]]
        return super()._keep(command, result)

    def _latent(
        self, command: messages.RunStage, role: str
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        latent = super()._latent(command, role)
        if command.stage is Stage.DECODE and (word := doubles.take_one("decode:")):
            if word == "decode:crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            latent = np.full_like(latent, _VALUES[word.partition(":")[2]])
        return latent

    def _result(self, command: messages.RunStage) -> tuple[str, str]:
        found = super()._result(command)
        if command.stage is Stage.DECODE and doubles.take_one("blank:"):
            pixels = bytes(command.request.width * command.request.height * 3)
            os.pwrite(self._exchange, pixels, 0)
            return hashlib.sha256(pixels).hexdigest(), ""
        return found


stages.Engine = Unlucky  # type: ignore[misc]  # the worker's thread looks it up there
