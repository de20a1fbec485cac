"""The messages between the runtime and the front, which owns the conversations of all language models.

    front    Hello                          version of the language, engine build, pid
    runtime  Furnish                        front  Furnished | FrontRefused
    runtime  OpenModel / CloseModel         front  ModelOpened / ModelClosed | FrontRefused
    runtime  Attach (one descriptor)        nothing; a link to a GPU child, its death is seen by its end
    runtime  Ask (a descriptor when large)  front  Answered (Accepted or Refused), then Said*
    runtime  Serve                          front  Said* ending in Ended; Failed; nothing if the child goes
    runtime  Drop                           front  Dropped
    runtime  Tokenize / Detokenize          front  Tokenized / Detokenized | FrontRefused
    runtime  Ping                           front  Pong
    runtime  Shutdown                       the front keeps on disk what it may, and exits with code 0

An answer repeats its command's `serial`; what is said unasked (Said, Working, Failed, Keeping) names its
request or model instead. Serve is repeated each time a request may go on in a child; the front then sends it
the history and the last saved state. Nothing here is ever taken back: a token that was said stays said.

Neighbours: `asks` has the bodies and the items, `llm_child` and `llm_link` the child's two conversations.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from tidegate.wire import asks, messages
from tidegate.wire.frames import ProtocolError
from tidegate.wire.messages import FaultKind, Hello, Message, Ping, Pong, Shutdown

# A longer body travels in a memory file, so that a frame stays a frame.
BODY_INLINE_BYTES_MAX: Final = 256 * 1024
# Pictures are the large part: 16 of 2048 by 2048.
BODY_BYTES_MAX: Final = 256 * 1024 * 1024


# ---------------------------------------------------------------- from the runtime to the front


class Furnish(Message, frozen=True, kw_only=True):
    """Once, before anything else: how much saved conversation may be kept, and where.

    `ram_bytes` bounds what is kept of idle conversations in memory files, `disk_bytes` what is kept of them
    in `folder` over a restart ("" keeps nothing). States of requests in flight are bounded by the child's
    own SetLevel instead.
    """

    serial: int
    ram_bytes: int = 0
    disk_bytes: int = 0
    folder: str = ""


class OpenModel(Message, frozen=True, kw_only=True):
    """Open a model's vocabulary and template; its weights are never read here.

    `context_tokens_count` is what one conversation can hold (of one slot); `projector_path` names the mmproj,
    "" when the model cannot see; `template` is used instead of the model's own, unless it is "".
    """

    serial: int
    model: str
    path: str
    context_tokens_count: int
    slots_count: int
    fingerprint: str = ""
    projector_path: str = ""
    template: str = ""


class CloseModel(Message, frozen=True, kw_only=True):
    """Forget a model; its conversations in flight fail."""

    serial: int
    model: str


class Attach(Message, frozen=True, kw_only=True):
    """Here is the socket to this incarnation of a GPU child (one descriptor). It replaces an older one."""

    model: str
    worker: str
    incarnation: int


class Ask(Message, frozen=True, kw_only=True):
    """A client's ask. `body` is `asks.encode`d; when it is empty the descriptor beside it holds it.

    `history` are tokens of the answer that an earlier front already handed out: the answer goes on after
    them, and their text is not said again.
    """

    serial: int
    request: str
    model: str
    body: bytes = b""
    history: tuple[int, ...] = ()


class Serve(Message, frozen=True, kw_only=True):
    """Begin this request in that child, or go on with it there."""

    request: str
    model: str
    worker: str
    incarnation: int


class Drop(Message, frozen=True, kw_only=True):
    """Forget a request: its client went away, or it was ended for another reason."""

    serial: int
    request: str


class FreeStates(Message, frozen=True, kw_only=True):
    """Give back the RAM of a model's saved states; who goes on without one is evaluated again."""

    serial: int
    model: str


class Tokenize(Message, frozen=True, kw_only=True):
    """Text to tokens."""

    serial: int
    model: str
    text: str
    adds_special: bool = False
    parses_special: bool = True


class Detokenize(Message, frozen=True, kw_only=True):
    """Tokens to text."""

    serial: int
    model: str
    ids: tuple[int, ...]


# ---------------------------------------------------------------- from the front to the runtime


class Furnished(Message, frozen=True, kw_only=True):
    """`kept_count` states of idle conversations were found on disk."""

    serial: int
    kept_count: int = 0


class ModelOpened(Message, frozen=True, kw_only=True):
    """What the vocabulary and the template say about a model."""

    serial: int
    model: str
    vocabulary_count: int
    context_trained_count: int
    name: str = ""
    architecture: str = ""
    has_template: bool = False
    tools_family: str = ""
    sees: bool = False


class ModelClosed(Message, frozen=True, kw_only=True):
    """Forgotten."""

    serial: int
    model: str


class FrontRefused(Message, frozen=True, kw_only=True):
    """A command could not be carried out. `code` is stable, `message` and `remedy` are for people."""

    serial: int
    fault: FaultKind
    message: str
    code: str = ""
    remedy: str = ""


class Answered(Message, frozen=True, kw_only=True):
    """Whether an ask is understood; only then is it worth a place in the queue."""

    serial: int
    request: str
    answer: asks.Accepted | asks.Refused


class Word(msgspec.Struct, frozen=True, array_like=True):
    """What came of one request: items in order, and the tokens behind them, also those whose text is held
    back for the moment (half a character, perhaps a stop text).
    """

    request: str
    items: tuple[asks.Delta | asks.Ended, ...]
    ids: tuple[int, ...] = ()


class Said(Message, frozen=True, kw_only=True):
    """Words of several requests in one frame. A request's last item is Ended."""

    words: tuple[Word, ...]


class Working(Message, frozen=True, kw_only=True):
    """A sign of life of a request whose prompt is being evaluated."""

    request: str
    done_count: int
    total_count: int


class Failed(Message, frozen=True, kw_only=True):
    """The child could not go on with a request, and lives. It may be served again; nothing is lost."""

    request: str
    worker: str
    incarnation: int
    fault: FaultKind
    message: str


class Dropped(Message, frozen=True, kw_only=True):
    """Forgotten; the child was told where one was serving it."""

    serial: int
    request: str


class StatesFreed(Message, frozen=True, kw_only=True):
    """The RAM was given back."""

    serial: int
    model: str


class Keeping(Message, frozen=True, kw_only=True):
    """What the front holds of a model's conversations: requests in flight, idle ones, and those on disk."""

    model: str
    active_bytes: int
    idle_bytes: int
    disk_bytes: int = 0


class Tokenized(Message, frozen=True, kw_only=True):
    """The tokens, and the bytes of each."""

    serial: int
    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]


class Detokenized(Message, frozen=True, kw_only=True):
    """The text; bytes that are no UTF-8 are replaced."""

    serial: int
    text: str


ToFront = (
    Furnish
    | OpenModel
    | CloseModel
    | Attach
    | Ask
    | Serve
    | Drop
    | FreeStates
    | Tokenize
    | Detokenize
    | Ping
    | Shutdown
)
FromFront = (
    Hello
    | Furnished
    | ModelOpened
    | ModelClosed
    | FrontRefused
    | Answered
    | Said
    | Working
    | Failed
    | Dropped
    | StatesFreed
    | Keeping
    | Tokenized
    | Detokenized
    | Pong
)

_TO_FRONT: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)
_FROM_FRONT: msgspec.msgpack.Decoder[FromFront] = msgspec.msgpack.Decoder(FromFront)


def decode_to_front(payload: bytes) -> ToFront:
    """Read what the runtime said."""
    try:
        return _TO_FRONT.decode(payload)
    except messages.NOT_A_MESSAGE as error:
        raise ProtocolError(f"not a message for the front: {error}") from error


def decode_from_front(payload: bytes) -> FromFront:
    """Read what the front said."""
    try:
        return _FROM_FRONT.decode(payload)
    except messages.NOT_A_MESSAGE as error:
        raise ProtocolError(f"not a message from the front: {error}") from error


def pack(body: asks.Body) -> tuple[bytes, int | None]:
    """A body for `Ask`: inline, or empty with a memory file that the caller sends along and closes."""
    payload = asks.encode(body)
    if len(payload) <= BODY_INLINE_BYTES_MAX:
        return payload, None
    descriptor = os.memfd_create("tidegate-ask", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(payload)
    return b"", descriptor


def unpack(body: bytes, descriptor: int | None) -> asks.Body:
    """Read what `pack` made; the descriptor stays the caller's. Raises `ProtocolError`."""
    if descriptor is not None:
        found_bytes = os.fstat(descriptor).st_size
        if found_bytes > BODY_BYTES_MAX:
            raise ProtocolError(f"an ask of {found_bytes} bytes; the limit is {BODY_BYTES_MAX}")
        body = os.pread(descriptor, found_bytes, 0)
    try:
        return asks.decode(body)
    except messages.NOT_A_MESSAGE as error:
        raise ProtocolError(f"not an ask: {error}") from error
