"""Tools: in which words a model calls functions, how it is made to, and how its calls are heard.

    Hermes (Qwen too)   <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as often as it likes
    Llama 3             {"name": ..., "parameters": {...}} instead of an answer, more after a `;`

Owns the families, telling them apart by the template, the shape that a forced call has to have, and the
`Listener` that takes calls out of a stream. It hands out what is certain at once: words as words, and a call
with its name and then its arguments as they come; nothing that was said is taken back. What looked like a
call and is none is said as words.
"""

from __future__ import annotations

import enum
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final  # Any: schemas are JSON of any shape

import msgspec

from tidegate.core.faults import ClientError
from tidegate.wire import asks
from tidegate.workers.front.brackets import Brackets

# A head longer than this is no head of a call.
HEAD_CHARACTERS_MAX: Final = 400
TOOLS_MAX: Final = 128


class Family(enum.StrEnum):
    """In which words a model calls tools."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    NONE = ""

    @property
    def opening(self) -> str:
        """What stands before a call."""
        return {Family.HERMES: "<tool_call>", Family.LLAMA3: "<|python_tag|>", Family.NONE: ""}[self]

    @property
    def closing(self) -> str:
        """What stands after a call."""
        return "</tool_call>" if self is Family.HERMES else ""

    @property
    def arguments_key(self) -> str:
        """Under which the arguments stand."""
        return "parameters" if self is Family.LLAMA3 else "arguments"

    @property
    def kept(self) -> tuple[str, ...]:
        """Special tokens that a listener has to see as text."""
        return tuple(text for text in (self.opening, self.closing) if text)


def family_of(source: str) -> Family:
    """The family that a chat template belongs to; NONE without tools, or with tools in its own way."""
    if "tools" not in source:
        return Family.NONE
    if "<tool_call>" in source:
        # Others write calls between the same tags in other words.
        ways = ("<function=", "<arg_key>", "<tool_sep>", "<invoke")
        return Family.NONE if any(way in source for way in ways) else Family.HERMES
    if "<|start_header_id|>" in source and "ipython" in source and '"parameters"' in source:
        return Family.LLAMA3
    return Family.NONE


def described(tools: Sequence[asks.Tool]) -> list[dict[str, Any]]:
    """The tools as templates expect them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def check(chat: asks.Chat, family: Family) -> None:
    """Refuse tools that the model cannot call. Raises ClientError."""
    if not chat.tools:
        if chat.choice in (asks.Choice.REQUIRED, asks.Choice.NAMED):
            raise ClientError("A tool is to be called and none is given.", code="bad_tools")
        return
    names = [tool.name for tool in chat.tools]
    if len(names) > TOOLS_MAX or len(set(names)) < len(names):
        raise ClientError(f"Up to {TOOLS_MAX} tools of different names can be given.", code="bad_tools")
    if chat.choice is asks.Choice.NAMED and chat.choice_name not in names:
        raise ClientError(
            f"There is no tool {chat.choice_name!r}.",
            remedy=f"Given are {', '.join(names)}.",
            code="bad_tools",
        )
    if chat.choice is not asks.Choice.NONE and family is Family.NONE:
        raise ClientError(
            "The chat template of this model has no tools, or calls them in a way that is not known here.",
            remedy="Tools work with templates of the Hermes (also Qwen) and Llama 3 families.",
            code="tools_unsupported",
        )


def shape_text(chat: asks.Chat, family: Family) -> str:
    """The JSON schema of one call, as text."""
    wanted = [
        tool for tool in chat.tools if chat.choice is not asks.Choice.NAMED or tool.name == chat.choice_name
    ]
    shapes = [_call_shape(tool, family, at=f"anyOf/{n}/") for n, tool in enumerate(wanted)]
    return msgspec.json.encode({"anyOf": shapes}).decode()


def forced_grammar(body: str, chat: asks.Chat, family: Family) -> str:
    """A whole grammar around the converted shape of one call."""
    renamed = re.sub(r"^root ::=", "tool-body ::=", body, flags=re.MULTILINE)
    if family is Family.HERMES:
        call = '"<tool_call>\\n" tool-body "\\n</tool_call>"'
        more = (
            '("\\n" tool-call)*' if chat.has_parallel_calls and chat.choice is not asks.Choice.NAMED else ""
        )
    else:
        call, more = "tool-body", ""
    return f"root ::= tool-call {more}\ntool-call ::= {call}\n{renamed}"


def _call_shape(tool: asks.Tool, family: Family, *, at: str) -> dict[str, Any]:
    key = family.arguments_key
    arguments = _moved(tool.parameters or {"type": "object"}, f"#/{at}properties/{key}")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, key: arguments},
        "required": ["name", key],
        "additionalProperties": False,
    }


def _moved(value: Any, to: str) -> Any:
    """A schema that now stands within another one: what it refers to has moved along."""
    if isinstance(value, list):
        return [_moved(one, to) for one in value]
    if not isinstance(value, dict):
        return value
    moved = {name: _moved(one, to) for name, one in value.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = to + reference[1:]
    return moved


# ---------------------------------------------------------------- hearing calls

_TEXT: Final = r'"((?:[^"\\]|\\.)*)"'
_HEAD: Final = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*'
    + _TEXT
    + r'\s*,\s*"(?:arguments|parameters)"\s*:\s*'
)


class Listener:
    """Takes the calls out of one answer. Feed it text as it comes, and end it."""

    def __init__(
        self, family: Family, names: Sequence[str], *, identify: Callable[[], str] | None = None
    ) -> None:
        self._family = family
        self._names = frozenset(names)
        self._identify = identify or (lambda: f"call_{secrets.token_hex(12)}")
        self._pending = ""  # Came, and is not decided.
        self._state = self._between if family is Family.HERMES else self._beginning
        self._brackets = Brackets()
        self._said: list[asks.Delta] = []
        self.calls_count = 0

    def feed(self, text: str) -> list[asks.Delta]:
        """What has become certain."""
        self._pending += text
        while self._state():
            pass
        return self._taken()

    def end(self) -> list[asks.Delta]:
        """The answer has ended: what is pending is decided now."""
        if self._state == self._in_head:
            if not self._say_whole_call():
                self._give_up()
        elif self._state in (self._between, self._beginning):
            self._say(self._pending.rstrip() if self.calls_count else self._pending)
        self._pending = ""
        return self._taken()

    # Each state looks at what is pending, and says whether another look is worth while.

    def _between(self) -> bool:
        """Hermes: words until an opening tag."""
        opening = self._family.opening
        before, tag, after = self._pending.partition(opening)
        if tag:
            self._say(before.rstrip() if not self.calls_count else before.strip())
            self._pending, self._state = after, self._in_head
            return True
        held = _held(self._pending, opening)
        kept = self._pending[len(self._pending) - held :]
        free = self._pending[: len(self._pending) - held]
        if self.calls_count and not free.strip():
            return False  # line breaks between two calls, or after the last one
        words = free.rstrip()
        self._say(words)
        self._pending = free[len(words) :] + kept
        return False

    def _beginning(self) -> bool:
        """Llama 3: an answer that begins with a brace or its tag is a call, perhaps."""
        if self.calls_count:
            self._pending = self._pending.lstrip("}; \n\t")
        bare = self._pending.lstrip()
        opening = self._family.opening
        if bare.startswith(opening):
            self._pending, self._state = bare[len(opening) :], self._in_head
            return True
        if bare.startswith("{"):
            self._state = self._in_head
            return True
        if not bare or opening.startswith(bare):
            return False
        self._state = self._only_words
        return True

    def _only_words(self) -> bool:
        self._say(self._pending)
        self._pending = ""
        return False

    def _in_head(self) -> bool:
        """A call until its arguments begin."""
        head = _HEAD.match(self._pending)
        rest = self._pending[head.end() :] if head else ""
        if head and rest:
            name = _text_of(head.group(1))
            if name not in self._names:
                return self._give_up()
            if rest[0] == "{":
                self._say_call(asks.CallDelta(index=self.calls_count, id=self._identify(), name=name))
                self._pending, self._state, self._brackets = rest, self._in_arguments, Brackets()
                return True
        if self._is_whole() or len(self._pending) > HEAD_CHARACTERS_MAX or not self._may_be_head():
            if not self._is_whole() or not self._say_whole_call():
                return self._give_up()
            self._state = self._after_call
            return True
        return False

    def _in_arguments(self) -> bool:
        """Arguments are handed out as they come, until their last bracket."""
        taken = self._brackets.take(self._pending)
        if taken:
            self._say_call(asks.CallDelta(index=self.calls_count, arguments=self._pending[:taken]))
        self._pending = self._pending[taken:]
        if not self._brackets.is_closed:
            return False
        self.calls_count += 1
        self._state = self._after_call
        return True

    def _after_call(self) -> bool:
        """What is left of a call's own brackets and tags says nothing."""
        closing = self._family.closing
        if not closing:
            self._state = self._beginning
            return bool(self._pending)
        before, tag, after = self._pending.partition(closing)
        if tag:
            self._pending, self._state = after, self._between
            return True
        self._pending = before[len(before) - _held(before, closing) :]
        return False

    # --- parts of the above

    def _is_whole(self) -> bool:
        brackets = Brackets()
        brackets.take(self._pending.lstrip())
        return brackets.is_closed

    def _may_be_head(self) -> bool:
        bare = self._pending.lstrip()
        return not bare or bare[0] == "{"

    def _say_whole_call(self) -> bool:
        """A call whose parts stand in another order than usual, or that takes no arguments."""
        value, rest = self._first_value()
        try:
            found = msgspec.json.decode(value)
        except msgspec.DecodeError:  # no JSON, so no call
            return False
        name = found.get("name") if isinstance(found, dict) else None
        if name not in self._names:
            return False
        arguments = found.get("arguments", found.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        self._say_call(
            asks.CallDelta(index=self.calls_count, id=self._identify(), name=str(name), arguments=text)
        )
        self.calls_count += 1
        self._pending = rest
        return True

    def _first_value(self) -> tuple[str, str]:
        bare = self._pending.lstrip()
        taken = Brackets().take(bare)
        return bare[:taken], bare[taken:]

    def _give_up(self) -> bool:
        """It is no call: it was words all along."""
        self._say(self._family_opening() + self._pending)
        self._pending = ""
        self._state = self._between if self._family is Family.HERMES else self._only_words
        return False

    def _taken(self) -> list[asks.Delta]:
        """What was said since the last time, words in a row as one."""
        said, self._said = self._said, []
        found: list[asks.Delta] = []
        for delta in said:
            if found and not delta.calls and not found[-1].calls:
                found[-1] = asks.Delta(text=found[-1].text + delta.text)
            else:
                found.append(delta)
        return found

    def _family_opening(self) -> str:
        return self._family.opening if self._family is Family.HERMES else ""

    def _say(self, words: str) -> None:
        if words:
            self._said.append(asks.Delta(text=words))

    def _say_call(self, call: asks.CallDelta) -> None:
        self._said.append(asks.Delta(calls=(call,)))


def _text_of(escaped: str) -> str:
    try:
        return str(msgspec.json.decode(f'"{escaped}"'))
    except msgspec.DecodeError:  # a line break within a name, or half an escape
        return ""


def _held(text: str, tag: str) -> int:
    """How many characters at the end could be the beginning of a tag."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
