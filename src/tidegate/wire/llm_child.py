"""The messages between the runtime and the GPU child of one language model.

    child    Hello                          nothing is touched yet: a child that waits may become any model
    runtime  OpenLlm                        child  LlmOpened | LlmRefused
    runtime  AttachFront (one descriptor)   nothing; the socket to the front, from now on the one that counts
    runtime  SetLevel                       child  LevelReached | LevelFailed
    runtime  Ping                           child  Pong, between two steps of the computation
    runtime  Shutdown                       the child hands over its state, frees everything, exits with 0

HOT and PARTIAL load the weights when they are not there, make the context and compute once at full batch
before they are reached. WARM suspends every stream between two tokens, hands its state to the front and frees
the context. Layers are counted as llama.cpp counts them: all of a model's blocks and one for its output;
`layers_count` of them lie on the card. COLD is the end of this process and no level of it.

Neighbours: `llm_link` is what child and front say to each other, `tidegate.workers.llm` is the child.
"""

from __future__ import annotations

import enum

import msgspec

from tidegate.core.llm.level import Level
from tidegate.wire import messages
from tidegate.wire.frames import ProtocolError
from tidegate.wire.messages import FaultKind, Hello, Message, Ping, Pong, Shutdown


class Evaluation(enum.StrEnum):
    """How tokens of parallel streams are computed together."""

    THROUGHPUT = "throughput"  # Only the streams that are active, in one pool of cells.
    REPRODUCIBLE = "reproducible"  # A text never depends on who else is being served.


class Overflow(enum.StrEnum):
    """What happens when an answer reaches the end of its context."""

    END = "end"  # The answer ends, as if it had been allowed no more tokens.
    SHIFT = "shift"  # The older half after the kept beginning is forgotten.


class LoadMode(enum.StrEnum):
    """How the weights come from their file."""

    AUTO = "auto"
    MMAP = "mmap"
    READ = "read"
    DIRECT = "direct"


# ---------------------------------------------------------------- from the runtime to the child


class OpenLlm(Message, frozen=True, kw_only=True):
    """Which model this child is, and how it computes. Opens nothing but the virtual card's ledger.

    `device` is "" for the CPU alone (every card is hidden then), else the name of a device of the engine.
    `context_tokens_count` is for one slot. `keep_tokens_count` is the beginning that a shift leaves alone.
    """

    serial: int
    model: str
    path: str
    fingerprint: str = ""
    device: str = ""
    ledger_path: str = ""
    projector_path: str = ""
    context_tokens_count: int = 4096
    slots_count: int = 4
    batch_tokens_count: int = 256
    threads_count: int = 0
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: bool = True
    evaluation: Evaluation = Evaluation.THROUGHPUT
    overflow: Overflow = Overflow.END
    keep_tokens_count: int = 0
    load_mode: LoadMode = LoadMode.AUTO
    image_tokens_max: int = 0
    # Computed once before HOT is said, where a device's pools grow with use; 0 where they do not.
    warm_up_tokens_count: int = 0
    # Save every restored state once more and compare: for proofs.
    proves_restores: bool = False


class AttachFront(Message, frozen=True, kw_only=True):
    """Here is the socket to the front (one descriptor). Streams of an older front are forgotten."""


class SetLevel(Message, frozen=True, kw_only=True):
    """Go to this level. For WARM, `ram_bytes` bounds the states handed over; with 0 they are dropped."""

    serial: int
    level: Level
    layers_count: int = 0
    card_bytes: int = 0
    ram_bytes: int = 0


# ---------------------------------------------------------------- from the child to the runtime


class LlmOpened(Message, frozen=True, kw_only=True):
    """Ready for SetLevel."""

    serial: int


class LlmRefused(Message, frozen=True, kw_only=True):
    """OpenLlm was not possible."""

    serial: int
    fault: FaultKind
    message: str


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine says it holds on one device; `device` is "" for host memory."""

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


class LevelReached(Message, frozen=True, kw_only=True):
    """The level is reached. `state_bytes` were handed to the front on the way to WARM."""

    serial: int
    level: Level
    layers_count: int
    took_ms: int
    state_bytes: int = 0
    holdings: tuple[Holding, ...] = ()


class LevelFailed(Message, frozen=True, kw_only=True):
    """The level could not be reached. The child holds what `holdings` says, and can be ended or told again.

    When a level below it was possible it stands there: WARM when only the context was refused.
    """

    serial: int
    fault: FaultKind
    message: str
    holdings: tuple[Holding, ...] = ()


ToChild = OpenLlm | AttachFront | SetLevel | Ping | Shutdown
FromChild = Hello | LlmOpened | LlmRefused | LevelReached | LevelFailed | Pong

_TO_CHILD: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_FROM_CHILD: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def decode_to_child(payload: bytes) -> ToChild:
    """Read what the runtime said."""
    try:
        return _TO_CHILD.decode(payload)
    except messages.NOT_A_MESSAGE as error:
        raise ProtocolError(f"not a message for a language model's child: {error}") from error


def decode_from_child(payload: bytes) -> FromChild:
    """Read what a child said."""
    try:
        return _FROM_CHILD.decode(payload)
    except messages.NOT_A_MESSAGE as error:
        raise ProtocolError(f"not a message from a language model's child: {error}") from error
