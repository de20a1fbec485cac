"""What the engine says while it works: its log, as lines, instead of on standard error.

Owns one callback for the process, because the engine keeps a pointer to it for good. A failed call of the
engine answers with a null pointer only; the reason is in its log.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tidegate_engines.llama.libraries import bindings, hear

LEVELS = {1: "debug", 2: "info", 3: "warning", 4: "error"}
CONTINUED = 5

Sink = Callable[[str, str], None]
"""Called with a level (debug, info, warning, error) and one line without its line break."""


class Log:
    """The process's log: what went wrong since it was last forgotten, and a sink for everything if there is
    one.
    """

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self._error = ""
        self._warning = ""
        self._level = "info"
        self._begun = ""

    def take(self, number: int, text: str) -> None:
        """A piece of text as the engine gives it: a line, or a part of one that goes on."""
        if number != CONTINUED:
            self._level = LEVELS.get(number, "info")
        self._begun += text
        *lines, self._begun = self._begun.split("\n")
        for line in filter(None, map(str.strip, lines)):
            if self._level == "error":
                self._error = self._error or line
            elif self._level == "warning":
                self._warning = line
            if self.sink is not None:
                self.sink(self._level, line)

    def forget(self) -> None:
        """What is said from now on belongs to the next call."""
        self._error = self._warning = ""

    def reason(self) -> str:
        """The engine's first error, of which the others are consequences; else its last warning."""
        return self._error or self._warning


@cache
def log() -> Log:
    """The log of this process; from the first call on the engine writes nothing to standard error."""
    kept = Log()

    def receive(level: int, text: bytes, _: object) -> None:
        kept.take(level, text.decode("utf-8", "replace"))

    hear(bindings().llama_log_callback(receive))
    return kept
