"""Thoughts: what some models say to themselves before they answer, between `<think>` and `</think>`.

Owns taking them out of a stream. Only the beginning of an answer can be thoughts: a tag later on is a word
like any other.
"""

from __future__ import annotations

import enum
from typing import Final

OPENING: Final = "<think>"
CLOSING: Final = "</think>"


class _Place(enum.Enum):
    BEGINNING = 0
    OPENED = 1  # The tag's own line break.
    WITHIN = 2
    AFTER = 3  # The line breaks between thoughts and answer.
    ANSWER = 4


class Thoughts:
    """Splits one answer into thoughts and words. `is_open`: the prompt itself ended with the opening tag."""

    def __init__(self, *, is_open: bool) -> None:
        self._place = _Place.WITHIN if is_open else _Place.BEGINNING
        self._pending = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Thoughts and words that have become certain."""
        self._pending += text
        thought = ""
        if self._place is _Place.BEGINNING:
            bare = self._pending.lstrip()
            if bare.startswith(OPENING):
                self._place, self._pending = _Place.OPENED, bare[len(OPENING) :]
            elif not OPENING.startswith(bare):
                self._place = _Place.ANSWER
        if self._place is _Place.OPENED and self._pending:
            self._place, self._pending = _Place.WITHIN, self._pending.removeprefix("\n")
        if self._place is _Place.WITHIN:
            thought, tag, after = self._pending.partition(CLOSING)
            if tag:
                self._place, self._pending = _Place.AFTER, after
            else:
                thought, self._pending = _cut(thought)
        if self._place is _Place.AFTER and (bare := self._pending.lstrip("\n")):
            self._place, self._pending = _Place.ANSWER, bare
        words = ""
        if self._place is _Place.ANSWER:
            words, self._pending = self._pending, ""
        return thought, words

    def end(self) -> tuple[str, str]:
        """The answer has ended: what is pending is what it looks like."""
        pending, self._pending = self._pending, ""
        if self._place is _Place.WITHIN:
            return pending, ""
        return "", "" if self._place is _Place.AFTER else pending


def _cut(text: str) -> tuple[str, str]:
    """What is certain, and an end that may be the beginning of the closing tag."""
    for length in range(min(len(text), len(CLOSING) - 1), 0, -1):
        if CLOSING.startswith(text[-length:]):
            return text[:-length], text[-length:]
    return text, ""
