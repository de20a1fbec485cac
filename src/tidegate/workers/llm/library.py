"""The library: llama.cpp's C functions and its log, as the child uses them.

Owns hearing why a call failed: the calls themselves only return a null pointer. The functions are called by
their own names everywhere else, so that llama.cpp's documentation is theirs too.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final  # Any: the bindings carry no types that a checker could use

from tidegate_engines import llama

_LINES_MAX: Final = 60
# How llama.cpp and ggml word a refused allocation.
_REFUSALS: Final = ("alloc", "out of memory", "failed to reserve")

Api = Any


class Library:
    """The bindings of one process, with the lines of the log that say what went wrong."""

    def __init__(self) -> None:
        self.api: Api = llama.bindings()
        self._troubles: deque[str] = deque(maxlen=_LINES_MAX)
        self._log = llama.log()
        self._log.sink = self._hear
        self.api.llama_backend_init()

    def _hear(self, level: str, line: str) -> None:
        if level in ("warning", "error"):
            self._troubles.append(line)

    def forget(self) -> None:
        """What is said from now on belongs to the next call."""
        self._log.forget()
        self._troubles.clear()

    def was_refused_memory(self) -> bool:
        """Whether what went wrong since `forget` was a refused allocation."""
        said = " ".join(self._troubles).lower()
        return any(words in said for words in _REFUSALS)

    def reason(self) -> str:
        """What the engine complained of, for people."""
        return self._log.reason() or "llama.cpp gave no reason"
