"""Showing a run: a bar with stage, step and VRAM, and notices above it.

Owns what a person sees while an image is made. Where stderr is no terminal there is no bar, but a line for
each stage.
What happens is told by `tidegate.runtime.relay` through its Listener. A stderr that is full or gone turns the
showing off and never ends a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tidegate.core.quantity import size_text
from tidegate.core.stage import Execution, Stage

_WORDS: Final = {
    Stage.ENCODE: "reading the prompt",
    Stage.ENCODE_IMAGE: "reading the picture",
    Stage.DENOISE: "sampling",
    Stage.DECODE: "making pixels",
}


class Show:
    """Shows one run on stderr; use as a context manager."""

    def __init__(self, console: Console, *, label: str = "") -> None:
        self._console = console
        self._label = f"{label} " if label else ""
        self._card_bytes = 0
        self._is_off = False
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[vram]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        with self._showing():
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._showing():
            self._bar.stop()

    def stage_began(self, stage: Stage, *, image: int, count: int, how: Execution) -> None:
        """Show a new stage."""
        which = f" {image + 1} of {count}" if count > 1 and stage is not Stage.ENCODE else ""
        text = f"{self._label}{_WORDS[stage]}{which}, {how.text()}"
        if not self._console.is_terminal:
            self._print(text)
            return
        if self._is_off:
            return
        with self._showing():
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(text, total=1, vram=self._vram())

    def step_done(self, step: int, steps: int, *, card_bytes: int) -> None:
        """Show a step."""
        self._card_bytes = card_bytes
        with self._showing():
            if self._task is not None:
                self._bar.update(self._task, completed=step, total=max(1, steps), vram=self._vram())

    def told(self, text: str) -> None:
        """Show a notice above the bar."""
        self._print(text, style="yellow")

    def _print(self, text: str, *, style: str = "") -> None:
        if not self._is_off:
            with self._showing():
                self._console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)

    @contextlib.contextmanager
    def _showing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # stderr is full, or nobody reads it, or it was closed under us
            self._is_off = True
            self._task = None

    def _vram(self) -> str:
        return f"VRAM {size_text(self._card_bytes)}" if self._card_bytes else ""
