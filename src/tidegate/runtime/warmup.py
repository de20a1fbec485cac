"""The warm-up: what common sizes would need, asked of the predictor while nobody waits for anything.

Owns when to ask and about which sizes; a model that is loaded on request is asked about at once. Answers are
kept for ever, so the first image of a size is planned at once, also after a restart. One question at a time
goes out, and none while a job is under way; the predictor's process computes at low priority anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from tidegate.core.catalog import FootprintKey, SizeKey
from tidegate.core.image.job import ENDED
from tidegate.core.prediction import key_of
from tidegate.core.stage import relay
from tidegate.core.state import State
from tidegate.runtime.conversation import Declined, Gone
from tidegate.runtime.newsroom import Newsroom
from tidegate.runtime.registry import Entry
from tidegate.runtime.settings import Settings
from tidegate.runtime.whatif import Oracle

# What people ask for most, beside the default of the settings.
SIDES: Final = (512, 1_024, 768)
# A server that has just answered is likely to be asked again.
CALM_S: Final = 10.0


def sizes_of(settings: Settings) -> tuple[tuple[int, int], ...]:
    """Widths and heights that are worth foreseeing, the most likely first."""
    sizes = [(settings.defaults.width, settings.defaults.height), *((side, side) for side in SIDES)]
    pixels_max = settings.listen.pixels_max
    return tuple(dict.fromkeys(size for size in sizes if size[0] * size[1] <= pixels_max))


class WarmUp:
    """Questions that nobody has asked yet."""

    def __init__(
        self, oracle: Oracle, news: Newsroom, *, sizes: tuple[tuple[int, int], ...], calm_s: float = CALM_S
    ) -> None:
        self._oracle = oracle
        self._news = news
        self._sizes = sizes
        self._calm_s = self._wait_s = calm_s

    async def run(self) -> None:
        """Ask until everything is known, and say so."""
        count = 0
        try:
            for key in self._keys():
                await self._calm()
                count += await self._learned(key)
        except Gone:
            return  # The predictor died, or the server ends; the next start asks again.
        self._news.warmed(count)

    async def foresee(self, entry: Entry) -> None:
        """Ask now what the size that is most likely would need of a model that somebody is about to use."""
        width, height = self._sizes[0]
        with contextlib.suppress(Gone):  # as above
            for key in self._keys_of(entry, width=width, height=height):
                await self._learned(key)

    async def _learned(self, key: FootprintKey) -> int:
        """How much of this was new. Raises `Gone`."""
        process = self._oracle.process()
        if process is None:
            raise Gone("the predictor is not up")
        try:
            _, records = await self._oracle.predictor.footprints(process, key)
        except Declined:
            # Who asks for this in earnest hears why.
            return 0
        self._oracle.remember(records)
        return len(records)

    def _keys(self) -> Iterator[FootprintKey]:
        for width, height in self._sizes:
            for entry in tuple(self._oracle.predictor.models.entries.values()):
                yield from self._keys_of(entry, width=width, height=height)

    def _keys_of(self, entry: Entry, *, width: int, height: int) -> Iterator[FootprintKey]:
        multiple, factor = entry.opened.size_multiple, entry.opened.latent_factor
        if width % multiple or height % multiple:
            return
        for stage in relay(from_image=False):
            size = SizeKey(entry.name, stage, height // factor, width // factor)
            state = self._oracle.shell.arbiter.state
            if all(model.name != entry.name for model in state.house.image_models):
                return  # A reload has taken it away.
            whole = key_of(state, size)
            for execution in whole.executions:
                yield FootprintKey(entry.name, stage, size.latent_height, size.latent_width, (execution,))

    async def _calm(self) -> None:
        """Wait until nobody has wanted anything for a while."""
        shell = self._oracle.shell
        while True:
            await shell.until(lambda state: not _is_busy(state))
            try:
                async with asyncio.timeout(self._wait_s):
                    await shell.until(_is_busy)
            except TimeoutError:
                # Nobody came; from here on only what is under way counts.
                self._wait_s = 0.0
                return
            self._wait_s = self._calm_s


def _is_busy(state: State) -> bool:
    has_requests = any(model.requests for model in state.models.values())
    return has_requests or any(job.phase not in ENDED for job in state.jobs.values())
