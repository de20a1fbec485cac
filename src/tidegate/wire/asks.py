"""Asks: what a client wants of a language model, and what comes back, as plain data for every process.

    api -> gate -> front    a Body: Chat, Completion or Embedding
    front -> gate -> api    Accepted or Refused, then Delta, Paused and Resumed, then Ended

Owns these shapes and the bounds that every process relies on. Frames that carry them, and which request they
belong to, are the neighbour `llm_front`. Texts are Unicode; counts of tokens end in `_count`.
"""

from __future__ import annotations

import enum
from typing import Any, Final  # Any: JSON schemas and template values are JSON of any shape

import msgspec

# Pictures of one ask: more would not fit a context of any usual size.
PICTURES_MAX: Final = 16
TOP_LOGPROBS_MAX: Final = 20
NONE: Final = -1  # "not wanted" where a count of 0 means something


class Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all data here."""


class Tagged(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="is", tag=str.lower):
    """Base of what stands beside others in a union."""


# ---------------------------------------------------------------- what is asked


class Picture(Data, frozen=True, kw_only=True):
    """A picture that somebody sent, decoded and bounded: `height` rows of `width` RGB pixels."""

    width: int
    height: int
    rgb: bytes


class Text(Tagged, frozen=True, kw_only=True):
    """Words of a turn."""

    text: str


class Seen(Tagged, frozen=True, kw_only=True):
    """A place in a turn where a picture of the ask stands."""

    picture: int


class Call(Data, frozen=True, kw_only=True):
    """A tool that the model called; `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Turn(Data, frozen=True, kw_only=True):
    """One message of a conversation. `call_id` says which call a turn of the role `tool` answers."""

    role: str
    parts: tuple[Text | Seen, ...] = ()
    name: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    reasoning: str = ""


class Tool(Data, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is its JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}  # Any: see the import


class Choice(enum.StrEnum):
    """Whether tools are called."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


class Shape(enum.StrEnum):
    """What the answer has to look like."""

    TEXT = "text"
    JSON = "json"  # any JSON object
    SCHEMA = "schema"
    GRAMMAR = "grammar"


class Format(Data, frozen=True, kw_only=True):
    """The shape of the answer; `text` is a JSON schema, or a grammar in GBNF with the rule `root`."""

    shape: Shape = Shape.TEXT
    text: str = ""


class Sampling(Data, frozen=True, kw_only=True):
    """How tokens are chosen, with llama.cpp's own defaults. Values that change nothing: temperature 0 takes
    the likeliest token; top_k 0, top_p 1, min_p 0, typical_p 1, penalties 0 (repeat 1) and DRY 0 are off.
    """

    seed: int = 0
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_count: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_count: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: dict[int, float] = {}
    ignore_eos: bool = False
    tokens_max: int = NONE
    stop: tuple[str, ...] = ()
    # How many likely tokens are told beside each chosen one; NONE: no logarithms of probabilities at all.
    logprobs_count: int = NONE


class Chat(Tagged, frozen=True, kw_only=True):
    """A conversation to be continued by its model's own template. `values` are further values for it."""

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    choice: Choice = Choice.AUTO
    choice_name: str = ""
    has_parallel_calls: bool = True
    format: Format = Format()
    sampling: Sampling = Sampling()
    pictures: tuple[Picture, ...] = ()
    values: dict[str, Any] = {}  # Any: see the import


class Completion(Tagged, frozen=True, kw_only=True):
    """A text, or tokens, to be continued as they are."""

    prompt: str | tuple[int, ...]
    format: Format = Format()
    sampling: Sampling = Sampling()


class Embedding(Tagged, frozen=True, kw_only=True):
    """Texts, or tokens, whose vectors are wanted."""

    inputs: tuple[str | tuple[int, ...], ...]


Body = Chat | Completion | Embedding

# ---------------------------------------------------------------- what comes back


class Accepted(Tagged, frozen=True, kw_only=True):
    """The ask is understood, and this long in tokens. Nothing was computed yet."""

    prompt_count: int


class Refused(Tagged, frozen=True, kw_only=True):
    """The ask is wrong; sending it again unchanged is refused again."""

    code: str
    message: str
    remedy: str = ""


class Chance(Data, frozen=True, kw_only=True):
    """A token and the logarithm of its probability before sampling. `raw` are its bytes."""

    text: str
    raw: bytes
    logprob: float
    top: tuple[Chance, ...] = ()


class CallDelta(Data, frozen=True, kw_only=True):
    """A further piece of a call; the first of each index has `id` and `name`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(Tagged, frozen=True, kw_only=True):
    """What was generated since the last one. Nothing of it is ever taken back."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    chances: tuple[Chance, ...] = ()


class Paused(Tagged, frozen=True, kw_only=True):
    """The answer waits; `reason` says for what, in words."""

    reason: str


class Resumed(Tagged, frozen=True, kw_only=True):
    """The answer goes on."""


class Finish(enum.StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # The model, or a stop text.
    LENGTH = "length"  # As many tokens as were allowed, or the context is full.
    CALLS = "tool_calls"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Ended(Tagged, frozen=True, kw_only=True):
    """The last word. `cached_count` tokens of the prompt were known already. When it failed, `code` and
    `message` say why; `vectors` are the answer to an Embedding.
    """

    finish: Finish
    prompt_count: int = 0
    cached_count: int = 0
    completion_count: int = 0
    vectors: tuple[tuple[float, ...], ...] = ()
    code: str = ""
    message: str = ""
    retry_after_ms: int = 0


Item = Delta | Paused | Resumed | Ended


def encode(body: Body) -> bytes:
    """The body as MessagePack."""
    return msgspec.msgpack.encode(body)


def decode(payload: bytes | memoryview) -> Body:
    """A body out of MessagePack. Raises msgspec.ValidationError."""
    # msgspec gives a union as a whole; the checker sees `type[object]` for it.
    found: Body = msgspec.msgpack.decode(payload, type=Body)
    return found
