"""Dialogue: from a chat to what the engine is given, and from what it generates to what a client hears.

Owns putting the prompt side together: the template's pieces, the grammar, what the detokeniser has to show,
and the `Parser` of the answer. It opens no engine. Neighbours: `templates`, `tools`, `schemas`, `thoughts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tidegate.core.faults import ClientError
from tidegate.wire import asks
from tidegate.workers.front import tools
from tidegate.workers.front.schemas import Convert, converted, grammar_of
from tidegate.workers.front.templates import Piece, Specials, Template, Words
from tidegate.workers.front.thoughts import OPENING, Thoughts
from tidegate.workers.front.tools import Family, Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the engine side needs of a chat.

    `grammar` is GBNF with the rule `root`, "" for none; with `triggers` it holds only from the first of these
    texts on. `kept` are special tokens whose text the parser has to see.
    """

    pieces: tuple[Piece, ...]
    grammar: str = ""
    triggers: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    family: Family = Family.NONE
    tool_names: tuple[str, ...] = ()
    thinks: bool = False
    is_thinking: bool = False

    def parser(self) -> Parser:
        """For one answer."""
        return Parser(self)


class Parser:
    """Hears one answer. What it hands out is never taken back."""

    def __init__(self, prepared: Prepared) -> None:
        self._thoughts = Thoughts(is_open=prepared.is_thinking) if prepared.thinks else None
        self._listener = Listener(prepared.family, prepared.tool_names) if prepared.tool_names else None

    @property
    def has_calls(self) -> bool:
        """Whether a tool was called."""
        return self._listener is not None and self._listener.calls_count > 0

    def feed(self, text: str) -> tuple[asks.Delta, ...]:
        """What has become certain of the answer."""
        thought, words = self._thoughts.feed(text) if self._thoughts else ("", text)
        return self._said(thought, words)

    def end(self) -> tuple[asks.Delta, ...]:
        """The answer has ended."""
        thought, words = self._thoughts.end() if self._thoughts else ("", "")
        said = self._said(thought, words)
        return (*said, *self._listener.end()) if self._listener else said

    def _said(self, thought: str, words: str) -> tuple[asks.Delta, ...]:
        said = (asks.Delta(reasoning=thought),) if thought else ()
        if not words:
            return said
        return (*said, *self._listener.feed(words)) if self._listener else (*said, asks.Delta(text=words))


def characters_of(chat: asks.Chat) -> int:
    """How long its texts are: far too long can be told without laying it out."""
    return sum(len(part.text) for turn in chat.turns for part in turn.parts if isinstance(part, asks.Text))


def prepare(
    template: Template, chat: asks.Chat, *, specials: Specials, now: datetime, convert: Convert
) -> Prepared:
    """Lay a chat out. Raises ClientError: `bad_messages`, `bad_tools`, `tools_unsupported`, `bad_schema`."""
    family = tools.family_of(template.source)
    tools.check(chat, family)
    has_tools = bool(chat.tools) and chat.choice is not asks.Choice.NONE
    given = tools.described(chat.tools) if has_tools else ()
    pieces = template.rendered(chat, specials=specials, now=now, tools=given)
    grammar, triggers = _grammar(chat, family if has_tools else Family.NONE, convert)
    # Where a grammar holds from the first token on, there is no room for thoughts.
    thinks = OPENING in template.source and not (grammar and not triggers)
    is_thinking = thinks and _ends_thinking(pieces)
    return Prepared(
        pieces=pieces,
        grammar=grammar,
        triggers=triggers,
        kept=(*(family.kept if has_tools else ()), *((OPENING, "</think>") if thinks else ())),
        family=family,
        tool_names=tuple(tool.name for tool in chat.tools) if has_tools else (),
        thinks=thinks,
        is_thinking=is_thinking,
    )


def _grammar(chat: asks.Chat, family: Family, convert: Convert) -> tuple[str, tuple[str, ...]]:
    shape = chat.format.shape
    if family is Family.NONE:
        return grammar_of(chat.format, convert=convert), ()
    if shape is not asks.Shape.TEXT:
        raise ClientError(
            "An answer cannot both call tools and have a given shape.",
            remedy='Send `tools` or `response_format`, or `"tool_choice": "none"`.',
            code="bad_tools",
        )
    if chat.choice is asks.Choice.AUTO and family is not Family.HERMES:
        return "", ()  # nothing tells beforehand that a call begins
    text = converted(tools.shape_text(chat, family), convert=convert)
    grammar = tools.forced_grammar(text, chat, family)
    return grammar, ((family.opening,) if chat.choice is asks.Choice.AUTO else ())


def _ends_thinking(pieces: tuple[Piece, ...]) -> bool:
    last = pieces[-1] if pieces else None
    return isinstance(last, Words) and not last.is_plain and last.text.rstrip().endswith(OPENING)
