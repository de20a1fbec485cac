"""Requests: what is known of each ask, so that any child can go on with it.

Owns the prompt, what was generated, and the last saved state. It speaks to nobody: `desk` does, and makes the
requests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from tidegate.wire import asks, llm_link
from tidegate.wire.llm_link import Segment, StateNote
from tidegate.workers.front.link import Link
from tidegate.workers.front.speech import Speech


@dataclass(slots=True, kw_only=True)
class Saved:
    """A saved state in a memory file."""

    note: StateNote
    descriptor: int

    def close(self) -> None:
        """Give the memory file back."""
        os.close(self.descriptor)


@dataclass(slots=True, kw_only=True)
class Request:
    """An answer in the making."""

    name: str
    model: str
    segments: tuple[Segment, ...]
    prompt: list[int]  # Its tokens; those of pictures are known to the child alone.
    sampling: asks.Sampling
    speech: Speech
    grammar: str = ""
    triggers: tuple[str, ...] = ()
    pictures: tuple[int, ...] = ()
    generated: list[int] = field(default_factory=list)
    prompt_count: int = 0
    cached_count: int = -1  # Of the prompt, when it was begun first; -1 before that.
    saved: Saved | None = None
    kept_count: int = 0  # See llm_link.Shifted.
    shifted_count: int = 0
    is_anew: bool = False  # It is evaluated from its beginning, because numbers were none.
    link: Link | None = None
    stream: int = 0

    @property
    def history(self) -> list[int]:
        """Everything a state of it can be of, while no picture is in it."""
        return self.prompt + self.generated

    def keep(self, saved: Saved | None) -> None:
        """A newer state replaces the older one."""
        if self.saved is not None:
            self.saved.close()
        self.saved = saved

    def note_shift(self, shift: llm_link.Shifted) -> None:
        """More of the history was forgotten by its context; the saved state is of the longer one."""
        self.keep(None)
        self.kept_count = shift.kept_count
        self.shifted_count += shift.shifted_count

    def may_begin_anew(self) -> bool:
        """After numbers that were none: once, from the beginning, as what was saved may hold the same."""
        if self.is_anew:
            return False
        self.keep(None)
        self.is_anew = True
        return True

    def leave(self) -> None:
        """No child is serving it any more."""
        self.link, self.stream = None, 0

    def close(self) -> None:
        """Give back what it holds."""
        self.keep(None)
        for picture in self.pictures:
            os.close(picture)
        self.pictures = ()


@dataclass(slots=True, kw_only=True)
class Vectors:
    """An ask for vectors in the making; `streams` says which text each stream is computing."""

    name: str
    model: str
    texts: list[list[int]]
    found: dict[int, tuple[float, ...]] = field(default_factory=dict)
    streams: dict[int, int] = field(default_factory=dict)
    link: Link | None = None

    def may_begin_anew(self) -> bool:
        """Its numbers would be the same again."""
        return False

    @property
    def prompt_count(self) -> int:
        """All tokens of all texts."""
        return sum(len(tokens) for tokens in self.texts)

    def leave(self) -> None:
        """No child is serving it any more."""
        self.link, self.streams = None, {}

    def close(self) -> None:
        """Nothing is held."""
