"""Speech: from the tokens of an answer to what a client hears.

Owns whole characters out of pieces of bytes, and stop texts: what might be the beginning of one is held back
until it is certain. The structure of an answer (thoughts, calls) is the parser's (`dialogue`).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tidegate.wire import asks
from tidegate.workers.front.dialogue import Parser
from tidegate.workers.front.vocabulary import Vocabulary


class Speech:
    """One answer. `is_stopped` says that a stop text was found; nothing is said after it."""

    def __init__(
        self, vocabulary: Vocabulary, *, hidden: frozenset[int], stops: Sequence[str], parser: Parser | None
    ) -> None:
        self._vocabulary, self._hidden, self._parser = vocabulary, hidden, parser
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.is_stopped = False

    @property
    def has_calls(self) -> bool:
        """Whether the answer calls a tool."""
        return self._parser is not None and self._parser.has_calls

    def feed(self, tokens: Sequence[int]) -> tuple[asks.Delta, ...]:
        """What has become certain with these tokens."""
        if self.is_stopped:
            return ()
        hidden, piece = self._hidden, self._vocabulary.piece
        raw = b"".join([piece(token) for token in tokens if token not in hidden])
        text = self._decoder.decode(raw)
        return self._said(self._released(text) if self._stops else text)

    def end(self) -> tuple[asks.Delta, ...]:
        """The answer is over: what was held back is said, unless it was a stop text."""
        said: tuple[asks.Delta, ...] = ()
        if not self.is_stopped:
            text = self._decoder.decode(b"", final=True)
            rest = self._released(text) if self._stops else text
            said = self._said(rest + self._held)
        self._held = ""
        return (*said, *self._parser.end()) if self._parser is not None else said

    def _said(self, text: str) -> tuple[asks.Delta, ...]:
        if not text:
            return ()
        return self._parser.feed(text) if self._parser is not None else (asks.Delta(text=text),)

    def _released(self, text: str) -> str:
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            said, self._held = self._held[: min(found)], ""
            return said
        # The longest end of the text that a stop text could begin with.
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                said, self._held = self._held[:-length], tail
                return said
        said, self._held = self._held, ""
        return said
