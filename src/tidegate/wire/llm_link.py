"""The messages between the front and a GPU child, on a socket of their own.

    front  Begin (descriptors: state, then pictures)  child  Evaluated, Tokens*, Snapshot*; Declined, Failed
    front  Embed                                      child  Embedded | Declined | Failed
    front  Leave                                      nothing; what was under way may still arrive
    child  Handover (one descriptor)                  front  Kept

A stream is one attempt to go on with one request in one child. The front numbers them and never uses a number
twice, so whatever a child says about a stream that the front has given up is ignored by its number. Tokens
and history are little-endian int32. Positions are stored, never derived: after a picture they differ from
the count of tokens.

A state is what llama.cpp wrote for one sequence, in a sealed memory file. `Snapshot` is a copy for the case
that the child dies; `Handover` is the state itself before the child gives its memory back; it waits for Kept.

Neighbours: `llm_front` and `llm_child` are what each of the two says to the runtime.
"""

from __future__ import annotations

import array
import enum
import sys

import msgspec

from tidegate.wire import asks, messages
from tidegate.wire.frames import ProtocolError
from tidegate.wire.messages import FaultKind, Message


class StateNote(msgspec.Struct, frozen=True, kw_only=True):
    """What a saved state holds.

    `tokens_count` items of the history (a picture counts with all of its tokens), the next of which belongs
    at `position`. It was saved from `slot`. The first `stepped_count` items were computed in whole steps of a
    prompt, the others one by one. A state is only taken into a context with the same `fingerprint`, and only
    when `digest` is that of its bytes.
    """

    tokens_count: int
    position: int
    state_bytes: int
    fingerprint: str
    digest: str
    slot: int = -1
    stepped_count: int = 0


class Ids(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """A run of text of the prompt."""

    tokens: bytes


class Image(msgspec.Struct, frozen=True, array_like=True, tag="i"):
    """A picture in the prompt: RGB rows in the memory file beside it; `key` names its content."""

    key: str
    width: int
    height: int


Segment = Ids | Image


# ---------------------------------------------------------------- from the front to the child


class Begin(Message, frozen=True, kw_only=True):
    """Evaluate the prompt and what was generated already, then go on.

    Descriptors, in this order: the state when there is one, then one for each Image of the prompt.
    `generated` are the tokens of the answer so far. The state may be that of another conversation that begins
    in the same way (not `is_own`): `common_count` items of it are those of this history. `grammar` is GBNF
    with the rule `root`; with `triggers` it counts from the first of these texts on. `shifted_count` tokens
    after `kept_count` of the history were forgotten by context shifts.
    """

    stream: int
    prompt: tuple[Segment, ...]
    sampling: asks.Sampling
    generated: bytes = b""
    grammar: str = ""
    triggers: tuple[str, ...] = ()
    state: StateNote | None = None
    common_count: int = 0
    is_own: bool = True
    kept_count: int = 0
    shifted_count: int = 0


class Embed(Message, frozen=True, kw_only=True):
    """Evaluate these tokens for their vector."""

    stream: int
    tokens: bytes


class Leave(Message, frozen=True, kw_only=True):
    """Stop with a stream."""

    stream: int


class Kept(Message, frozen=True, kw_only=True):
    """The state that was handed over as `handover` is in good hands, or was not wanted."""

    handover: int


# ---------------------------------------------------------------- from the child to the front


class Ending(enum.StrEnum):
    """Why a stream ended."""

    STOP = "stop"  # The model said so.
    LENGTH = "length"  # As many tokens as were allowed.
    CONTEXT = "context"  # The context is full.


class Likely(msgspec.Struct, frozen=True, array_like=True):
    """The logarithm of a token's probability before sampling, and those of the likeliest ones."""

    logprob: float
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Tokens that one stream chose since the last frame; with `ending` it is over."""

    stream: int
    ids: tuple[int, ...]
    ending: Ending | None = None
    likely: tuple[Likely, ...] = ()


class Tokens(Message, frozen=True, kw_only=True):
    """Tokens of several streams in one frame."""

    runs: tuple[Run, ...]


class Evaluated(Message, frozen=True, kw_only=True):
    """How far a stream's history is evaluated; `reused_count` of it was there already. The first one comes
    before anything is computed, the others now and then.
    """

    stream: int
    done_count: int
    total_count: int
    reused_count: int
    # All items of the prompt, pictures with all of their places.
    prompt_count: int


class Shifted(Message, frozen=True, kw_only=True):
    """After `kept_count` tokens of the history `shifted_count` more were forgotten."""

    stream: int
    kept_count: int
    shifted_count: int


class Snapshot(Message, frozen=True, kw_only=True):
    """A copy of a stream's state as it was at a token boundary (one descriptor)."""

    stream: int
    state: StateNote


class Handover(Message, frozen=True, kw_only=True):
    """A state that the child is about to free (one descriptor). `stream` is the one it belongs to, or 0 for
    an idle conversation, whose tokens are `history` then. Without a state (and descriptor) the stream was
    suspended and its state dropped.
    """

    handover: int
    stream: int = 0
    state: StateNote | None = None
    history: bytes = b""


class Embedded(Message, frozen=True, kw_only=True):
    """The vector: float32, of length one."""

    stream: int
    vector: bytes


class Declined(Message, frozen=True, kw_only=True):
    """The child has no context now; the stream never began and is served again when there is one."""

    stream: int


class Failed(Message, frozen=True, kw_only=True):
    """The child could not go on with a stream. `is_final`: another attempt would fail in the same way."""

    stream: int
    fault: FaultKind
    message: str
    is_final: bool = False


ToEngine = Begin | Embed | Leave | Kept
FromEngine = Tokens | Evaluated | Shifted | Snapshot | Handover | Embedded | Declined | Failed

_TO_ENGINE: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_FROM_ENGINE: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def decode_to_engine(payload: bytes) -> ToEngine:
    """Read what the front said."""
    try:
        return _TO_ENGINE.decode(payload)
    except messages.NOT_A_MESSAGE as error:
        raise ProtocolError(f"not a message for an engine: {error}") from error


def decode_from_engine(payload: bytes) -> FromEngine:
    """Read what a child said."""
    try:
        return _FROM_ENGINE.decode(payload)
    except messages.NOT_A_MESSAGE as error:
        raise ProtocolError(f"not a message from an engine: {error}") from error


def to_bytes(tokens: list[int] | tuple[int, ...]) -> bytes:
    """Tokens as they travel."""
    packed = array.array("i", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def to_tokens(packed: bytes) -> list[int]:
    """Tokens as they are used."""
    tokens = array.array("i")
    tokens.frombytes(packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tolist()
