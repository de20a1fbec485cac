"""Shared: something that computes for several processes at once, each getting its part.

Owns processor sharing: with n processes at work each runs at one n-th of its speed. Within a process tasks do
not slow each other down, as the streams of one language model are evaluated in one batch. Uploading to the
card takes part like computing: a simplification against whoever overlaps the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Time, and how to be called later."""

    now_ms: float

    def later(self, in_ms: float, do: Callable[[], None]) -> None:
        """Do something after a while."""


@dataclass(slots=True)
class Task:
    """Work that is left, in milliseconds alone."""

    owner: str
    left_ms: float
    done: Callable[[], None]


class Shared:
    """A card, or the cores of the machine."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: dict[int, Task] = {}
        self._number = 0
        self._last_ms = 0.0
        self._version = 0

    def add(self, owner: str, work_ms: float, done: Callable[[], None]) -> int:
        """Begin to work; `done` is called when it is."""
        self._advance()
        self._number += 1
        self._tasks[self._number] = Task(owner, work_ms, done)
        self._arm()
        return self._number

    def remove(self, number: int) -> float:
        """Stop working; answers what was left, 0 when it had ended."""
        self._advance()
        task = self._tasks.pop(number, None)
        self._arm()
        return max(0.0, task.left_ms) if task is not None else 0.0

    def _share(self) -> int:
        return max(1, len({task.owner for task in self._tasks.values()}))

    def _advance(self) -> None:
        passed_ms = (self._clock.now_ms - self._last_ms) / self._share()
        self._last_ms = self._clock.now_ms
        for task in self._tasks.values():
            task.left_ms -= passed_ms

    def _arm(self) -> None:
        self._version += 1
        version = self._version
        if self._tasks:
            next_ms = min(task.left_ms for task in self._tasks.values()) * self._share()
            self._clock.later(max(0.0, next_ms), lambda: self._ring(version))

    def _ring(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        ended = [number for number, task in self._tasks.items() if task.left_ms <= 1e-6]
        tasks = [self._tasks.pop(number) for number in ended]
        self._arm()
        for task in tasks:
            task.done()
