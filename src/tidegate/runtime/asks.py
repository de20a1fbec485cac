"""Asks at the gate: what is asked of language models by name, and how they are shown.

Owns the shapes that pass the gate beside those of `views`. What an ask says in detail, and what comes of it,
is the neighbour `tidegate.wire.asks`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tidegate.core.llm.level import Level
from tidegate.wire import asks


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOrder:
    """What a client wants of a language model; `model` is a name of the registry, "" the default."""

    body: asks.Body
    model: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AskHandle:
    """An ask was understood: its id, its model by its own name, and its length in tokens."""

    id: str
    model: str
    prompt_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWish:
    """A text to be taken apart. With `parses_special`, control tokens are meant where they are spelt."""

    text: str
    model: str = ""
    adds_special: bool = False
    parses_special: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """The tokens of a text, and the bytes of each."""

    model: str
    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenWish:
    """Tokens to be put together."""

    ids: tuple[int, ...]
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelWish:
    """Where a language model shall rest: a level, with how many layers for PARTIAL, or None for wherever the
    planner brings it.
    """

    level: Level | None
    layers_count: int = 0


class IntentKind(enum.StrEnum):
    """What a person is about to do, as far as a user interface can tell."""

    TYPING = "typing"
    UPLOAD = "upload"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageView:
    """A language model as it stands. `tide` is its level, or the movement between two; `wish` the level that
    somebody asked for, "" when the planner decides.
    """

    level: Level
    tide: str
    wish: str = ""
    layers_count: int = 0
    layers_on_card_count: int = 0
    context_count: int = 0
    slots_count: int = 0
    running_count: int = 0
    waiting_count: int = 0
    kept_bytes: int = 0
    has_vision: bool = False
    has_embeddings: bool = False
    has_template: bool = False
    tools_family: str = ""
    evaluation: str = "throughput"
