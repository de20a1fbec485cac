"""Chat templates: how a model wants a conversation laid out, and which parts of the result are not the
template's.

Owns rendering the template of a model file, what a template can do (a system turn, content in parts), and
the pieces of the result. Texts of clients are data: where they spell a control token of the vocabulary, this
spelling is kept out of the template by a mark that nobody can guess, and comes back as a plain piece; a
picture is such a mark as well, so no text can be taken for one.

    conversation -> marks for control tokens and pictures -> template -> split at the marks -> pieces

Bounds on what a template does are the neighbour `sandbox`; tools are `tools`.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NoReturn  # Any: messages are JSON of any shape

import msgspec
from jinja2 import TemplateError, TemplateSyntaxError

from tidegate.core.faults import ClientError
from tidegate.wire import asks
from tidegate.workers.front.sandbox import PURSE, Sandbox, compiled

SOURCE_CHARACTERS_MAX: Final = 1 << 20
# What a message may cost more; templates make some twenty calls for one.
MESSAGE_PURSE: Final = 16 * 1024
PROBE_PURSE: Final = 1 << 20
# From the Unicode areas for private use; with twelve random digits between them no text meets one by chance.
_OPEN, _CLOSE = "\ue000", "\ue001"
_PROBE: Final = "probe-5170"


@dataclass(frozen=True, slots=True)
class Words:
    """A text for the tokenizer. In a plain one, control tokens are only spelt and never meant."""

    text: str
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class Media:
    """Here stands a picture of the ask."""

    picture: int


Piece = Words | Media


class Declined(TemplateError):
    """The template itself says that it does not take these messages."""


class Specials:
    """The spellings of a vocabulary's control tokens, to be found in texts quickly."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = frozenset(text for text in texts if text)
        self._lengths = sorted({len(text) for text in self._texts}, reverse=True)
        first = {re.escape(text[0]) for text in self._texts}
        self._first = re.compile("|".join(sorted(first))) if first else None

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Parts of the text, in order; True for those that spell a control token."""
        if self._first is None:
            return [(text, False)]
        parts: list[tuple[str, bool]] = []
        done = 0
        for match in self._first.finditer(text):
            at = match.start()
            if at < done:
                continue
            found = next((n for n in self._lengths if text[at : at + n] in self._texts), 0)
            if found:
                parts += [(text[done:at], False), (text[at : at + found], True)]
                done = at + found
        return [part for part in (*parts, (text[done:], False)) if part[0]]


@dataclass(slots=True)
class _Marks:
    """What was taken out of the conversation, and the marks in its place."""

    specials: Specials
    keeps_arguments: bool = False
    nonce: str = field(default_factory=lambda: f"{secrets.randbelow(10**12):012}")
    kept: list[Piece] = field(default_factory=list)
    given_characters: int = 0

    def guarded(self, text: str) -> str:
        """The text with a mark for each control token that it spells."""
        self.given_characters += len(text)
        parts = self.specials.split(text)
        return "".join(self.put(Words(part, is_plain=True)) if special else part for part, special in parts)

    def put(self, piece: Piece) -> str:
        """A mark for this piece."""
        self.kept.append(piece)
        return f"{_OPEN}{self.nonce}{len(self.kept) - 1}{_CLOSE}"

    def tree(self, value: Any) -> Any:
        """JSON with every text in it guarded, keys too."""
        match value:
            case str():
                return self.guarded(value)
            case list() | tuple():
                return [self.tree(one) for one in value]
            case dict():
                return {self.guarded(str(key)): self.tree(one) for key, one in value.items()}
            case _:
                return value

    def pieces(self, rendered: str) -> tuple[Piece, ...]:
        """The rendered text, split at the marks."""
        found: list[Piece] = []
        for number, part in enumerate(re.split(f"{_OPEN}{self.nonce}(\\d+){_CLOSE}", rendered)):
            if number % 2:
                found.append(self.kept[int(part)])
            elif part:
                found.append(Words(part))
        return tuple(found)


class Template:
    """The chat template of one model. `bos` and `eos` are the spellings of its first and last token."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        if len(source) > SOURCE_CHARACTERS_MAX:
            raise _unusable("it is too long")
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._bos = bos
        self._turn = threading.Lock()
        self._sandbox = Sandbox()
        self._sandbox.globals["raise_exception"] = _refuse
        try:
            self._render = compiled(self._sandbox, source)
        except TemplateSyntaxError as error:
            raise _unusable(f"line {error.lineno}: {error.message}") from error
        # Most take None where there are no tools, as their authors' own library gives it; some want a list.
        self._no_tools: list[Any] | None = None
        self.wants_parts = self._shows_parts() and not self._shows({"role": "user", "content": _PROBE})
        if not self._shows({"role": "user", "content": self._content([_PROBE])}):
            self._no_tools = []
        self.has_system = self._shows(
            {"role": "system", "content": self._content([_PROBE])}, before_user=True
        )

    def rendered(
        self, chat: asks.Chat, *, specials: Specials, now: datetime, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[Piece, ...]:
        """The pieces of the prompt. Raises ClientError `bad_messages`."""
        try:
            return self._laid_out(chat, _Marks(specials), now, tools)
        except _RENDERING as error:
            failed = error
        if any(turn.calls for turn in chat.turns):
            # Some take the arguments of earlier calls as the text that they were.
            with contextlib.suppress(*_RENDERING):
                return self._laid_out(chat, _Marks(specials, keeps_arguments=True), now, tools)
        raise ClientError(
            f"The model's chat template does not take these messages: {_reason(failed)}.",
            remedy="Look at the order of roles, and at what this model can do.",
            code="bad_messages",
        ) from failed

    def _laid_out(
        self, chat: asks.Chat, marks: _Marks, now: datetime, tools: Sequence[Mapping[str, Any]]
    ) -> tuple[Piece, ...]:
        messages = self._messages(chat.turns, marks)
        further = {str(name): marks.tree(value) for name, value in chat.values.items()}
        if tools:
            further["tools"] = marks.tree(list(tools))
        purse = PURSE + 32 * marks.given_characters + MESSAGE_PURSE * len(messages)
        return marks.pieces(self._said(messages, now, purse, further))

    def _messages(self, turns: Sequence[asks.Turn], marks: _Marks) -> list[dict[str, Any]]:
        messages = []
        carried: list[str] = []
        for turn in turns:
            texts = [_guarded(part, marks) for part in _merged(turn.parts)]
            if turn.role == "system" and not self.has_system:
                carried += ["".join(texts), "\n\n"]  # said with the next words of the user
                continue
            if carried and turn.role == "user":
                texts, carried = [*carried, *texts], []
            messages.append(self._message(turn, texts, marks))
        if carried:
            messages.append({"role": "user", "content": self._content(carried[:-1])})
        return messages

    def _message(self, turn: asks.Turn, texts: list[str], marks: _Marks) -> dict[str, Any]:
        message: dict[str, Any] = {"role": turn.role, "content": self._content(texts)}
        if turn.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": marks.guarded(call.name), "arguments": _arguments(call, marks)},
                }
                for call in turn.calls
            ]
        if turn.reasoning:
            message["reasoning_content"] = marks.guarded(turn.reasoning)
        if turn.call_id:
            message["tool_call_id"] = turn.call_id
        if turn.name:
            message["name"] = marks.guarded(turn.name)
        return message

    def _content(self, texts: Sequence[str]) -> Any:
        if self.wants_parts:
            return [{"type": "text", "text": text} for text in texts]
        return "".join(texts)

    def _said(
        self, messages: list[dict[str, Any]], now: datetime, purse: int, further: Mapping[str, Any]
    ) -> str:
        with self._turn:
            self._sandbox.fill_purse(purse)
            text = self._render(
                {
                    **self._tokens,
                    "tools": self._no_tools,
                    "add_generation_prompt": True,
                    "strftime_now": lambda form: now.strftime(str(form)[:100]),
                    **further,
                    "messages": messages,
                }
            )
        # The tokenizer puts it in front by itself.
        return text.removeprefix(self._bos) if self._bos else text

    def _shows_parts(self) -> bool:
        return self._shows({"role": "user", "content": [{"type": "text", "text": _PROBE}]}, exactly=True)

    def _shows(self, message: dict[str, Any], *, before_user: bool = False, exactly: bool = False) -> bool:
        """Whether the template says what such a message holds."""
        messages = [message]
        if before_user:
            messages.append({"role": "user", "content": self._content(["?"])})
        try:
            said = self._said(messages, datetime(2024, 1, 1), PROBE_PURSE, {})
        except _RENDERING:  # it does not take such a message
            return False
        # A list put into a text by mistake shows its quotes.
        return _PROBE in said and not (exactly and f"'{_PROBE}'" in said)


# Every way in which a program in a sandbox fails: its own refusal, the sandbox's, and Python's.
_RENDERING: Final = (
    TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip


def _merged(parts: Sequence[asks.Text | asks.Seen]) -> list[asks.Text | asks.Seen]:
    """Texts in a row as one: two of them may spell what neither of them spells."""
    found: list[asks.Text | asks.Seen] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, asks.Text) and isinstance(last, asks.Text):
            found[-1] = asks.Text(text=last.text + part.text)
        else:
            found.append(part)
    return found


def _guarded(part: asks.Text | asks.Seen, marks: _Marks) -> str:
    return marks.guarded(part.text) if isinstance(part, asks.Text) else marks.put(Media(part.picture))


def _refuse(message: object) -> NoReturn:
    raise Declined(str(message)[:500])


def _arguments(call: asks.Call, marks: _Marks) -> Any:
    """As an object, which is what templates put into JSON themselves; a text that is no object stays one."""
    if marks.keeps_arguments:
        return marks.guarded(call.arguments)
    try:
        found = msgspec.json.decode(call.arguments or "{}")
    except msgspec.DecodeError:  # as the model wrote it, who may have been cut off
        return marks.guarded(call.arguments)
    return marks.tree(found) if isinstance(found, dict) else marks.guarded(call.arguments)


def _reason(error: BaseException) -> str:
    return str(error).strip().rstrip(".")[:500] or type(error).__name__


def _unusable(why: str) -> ClientError:
    return ClientError(
        f"The chat template of the model file cannot be used: {why}.",
        remedy="Give the model another one with `template` under [[llms]], or use /v1/completions.",
        code="bad_template",
    )
