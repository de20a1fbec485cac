"""The messages between the parent and an image worker: two closed unions, `ToWorker` and `FromWorker`.

A conversation, in order:

    worker  Hello                    version of this language, engine build, pid
    parent  Survey                   worker  Surveyed | Refused
    parent  Open                     worker  Opened | Refused
    parent  Predict                  worker  FootprintPredicted | Refused
    parent  PredictLlm               worker  LlmForetold | Refused (a predictor only)
    parent  Load / Release           worker  Loaded / Released | StageFailed
    parent  RunStage                 worker  Progress*, then StageFinished | StageFailed
    parent  Measure                  worker  Measured
    parent  Cancel                   (the running stage answers StageFailed with fault `cancelled`)
    parent  Ping                     worker  Pong, at once, even while a stage runs
    parent  Shutdown                 the worker exits with code 0

Every command but Shutdown carries a `serial` that its answer repeats (in Cancel it names the stage to stop).
Commands are carried out one after the other in the order in which they came. A worker may hold several open
models; `model` names the one that a command is about, and "" is a name like any other for a parent with just
one. Unknown fields are ignored, so either side may learn new ones; an unknown message is a `ProtocolError`.
Bytes are integers and end in `_bytes`, times in `_ms`.

Neighbours: `tidegate.core.stage` owns Stage, Component and Execution; `frames` puts messages on a stream;
`artifacts` holds the files that the paths name.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tidegate.core.stage import Component, Execution, Stage
from tidegate.wire.bounds import Amount, Hash, Preview, Words
from tidegate.wire.frames import ProtocolError
from tidegate.wire.llm_question import LlmForetold as LlmForetold
from tidegate.wire.llm_question import PredictLlm as PredictLlm
from tidegate.wire.llm_question import SplitFacts as SplitFacts
from tidegate.wire.message import FaultKind as FaultKind
from tidegate.wire.message import Message as Message

# Raised whenever an old worker could misunderstand a new parent or the other way round.
WIRE_VERSION: Final = 2


class ImageRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One image, in the words of the engine. A batch is several of these with seed, seed + 1, and so on."""

    prompt: str
    negative: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 7.0
    guidance: float = 3.5
    seed: int = 42
    sampler: str = ""
    scheduler: str = ""
    clip_skip: int = -1
    strength: float = 0.75
    eta: float | None = None
    flow_shift: float | None = None
    # What a person wrote, where the prompt was made of it; the engine never sees it.
    idea: str = ""


# ---------------------------------------------------------------- from the parent to the worker


class Survey(Message, frozen=True, kw_only=True):
    """Ask which devices the engine sees; a virtual card is attached first when its ledger is named."""

    serial: int
    ledger_path: str = ""


class Open(Message, frozen=True, kw_only=True):
    """Open a model by its files, keyed by role (model, diffusion_model, clip_l, ..., vae, taesd).

    A model that is open under this name already is closed first, with everything it had loaded.
    """

    serial: int
    files: dict[str, str]
    device: str
    threads: int = 0
    flash_attention: bool = True
    direct_convolution: bool = True
    weight_type: str = ""
    model: str = ""


class Predict(Message, frozen=True, kw_only=True):
    """Ask what a stage would need. Nothing is allocated and nothing need be loaded."""

    serial: int
    stage: Stage
    request: ImageRequest
    execution: Execution
    model: str = ""


class Load(Message, frozen=True, kw_only=True):
    """Bring a component's weights to their place. `encoder` adds the half of the VAE that encodes."""

    serial: int
    component: Component
    execution: Execution
    encoder: bool = False
    model: str = ""


class Release(Message, frozen=True, kw_only=True):
    """Give back everything a component holds."""

    serial: int
    component: Component
    model: str = ""


class RunStage(Message, frozen=True, kw_only=True):
    """Run one stage on files. `inputs` names artifacts by role; `output` and `tape` are paths to write.

    Roles: denoise needs `embeddings` and perhaps `init_latent`, decode needs `latent`. Pixels travel through
    the exchange, a memory file that both processes hold: encode_image reads RGB rows from it, decode writes
    them to it. `fingerprint` goes into the output, so that a later process can tell whose it is.
    `resets_peaks` starts new high-water marks, so that those reported are the stage's own.
    """

    serial: int
    stage: Stage
    request: ImageRequest
    execution: Execution
    inputs: dict[str, str] = msgspec.field(default_factory=dict)
    output: str = ""
    tape: str = ""
    fingerprint: dict[str, str] = msgspec.field(default_factory=dict)
    previews: bool = False
    model: str = ""
    resets_peaks: bool = False


class Measure(Message, frozen=True, kw_only=True):
    """Ask what is free and what this worker holds; `resets_peaks` starts new high-water marks."""

    serial: int
    resets_peaks: bool = False
    model: str = ""


class Cancel(Message, frozen=True, kw_only=True):
    """Stop the stage with this serial at the next step, or before it begins. What is on the tape stays."""

    serial: int


class Ping(Message, frozen=True, kw_only=True):
    """Are you alive? Answered from the reading thread, so a stopped process is told from a busy one."""

    serial: int


class Shutdown(Message, frozen=True, kw_only=True):
    """Release everything and exit with code 0."""


# ---------------------------------------------------------------- from the worker to the parent


class Hello(Message, frozen=True, kw_only=True):
    """The first frame. A parent that speaks another version hangs up."""

    version: int
    engine_build: str
    pid: int


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One device of the engine, in its own words; `type` is `gpu` or `cpu`."""

    name: str
    description: str
    type: str
    total_bytes: int
    free_bytes: int


class Surveyed(Message, frozen=True, kw_only=True):
    """The devices, and those of them that belong to the attached virtual card."""

    serial: int
    devices: tuple[DeviceFacts, ...]
    attached: tuple[str, ...] = ()


class ComponentFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the headers say about one component."""

    tensor_count: Amount
    file_bytes: Amount
    types: dict[str, int] = {}


class Opened(Message, frozen=True, kw_only=True):
    """The model was opened. `latent_channels` and `latent_factor` give the latent's shape for any size."""

    serial: int
    family: str
    components: dict[str, ComponentFacts]
    latent_channels: int
    latent_factor: int
    size_multiple: int
    device: str
    default_sampler: str = ""
    samplers: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()


class FootprintPredicted(Message, frozen=True, kw_only=True):
    """The bytes a stage needs, from a dry run of the very code that would run it."""

    serial: int
    weights_bytes: Amount
    compute_bytes: Amount
    card_peak_bytes: Amount
    ram_peak_bytes: Amount


class Refused(Message, frozen=True, kw_only=True):
    """Open or Predict could not be answered."""

    serial: int
    fault: FaultKind
    message: Words


class Loaded(Message, frozen=True, kw_only=True):
    """The weights are in their place."""

    serial: int
    component: Component
    ms: Amount
    card_bytes: Amount
    ram_bytes: Amount


class Released(Message, frozen=True, kw_only=True):
    """The component holds nothing any more; the figures are what the worker still holds."""

    serial: int
    component: Component
    card_bytes: Amount
    ram_bytes: Amount


class Measured(Message, frozen=True, kw_only=True):
    """Free and total bytes of the device as the engine sees it, and what this worker holds."""

    serial: int
    card_free_bytes: int
    card_total_bytes: int
    card_bytes: Amount
    ram_bytes: Amount


class Progress(Message, frozen=True, kw_only=True):
    """One step is done. `preview` is RGB, one pixel per latent cell, and empty when none was asked for."""

    serial: int
    stage: Stage
    step: Amount
    steps: Amount
    card_bytes: Amount = 0
    preview_width: Amount = 0
    preview_height: Amount = 0
    preview: Preview = b""

    def __post_init__(self) -> None:
        if len(self.preview) != 3 * self.preview_width * self.preview_height:
            raise ValueError("a preview has three bytes for each of its pixels")


class StageFinished(Message, frozen=True, kw_only=True):
    """A stage is done. If `storage_error` says why it was not saved, only this worker has the result."""

    serial: int
    stage: Stage
    artifact: str
    sha256: Hash
    ms: Amount
    card_peak_bytes: Amount
    ram_peak_bytes: Amount
    storage_error: Words = ""


class StageFailed(Message, frozen=True, kw_only=True):
    """Load, Release or RunStage failed and the worker lives on."""

    serial: int
    fault: FaultKind
    message: Words
    card_peak_bytes: Amount = 0
    ram_peak_bytes: Amount = 0


class Pong(Message, frozen=True, kw_only=True):
    """Alive."""

    serial: int


ToWorker = (
    Survey | Open | Predict | PredictLlm | Load | Release | RunStage | Measure | Cancel | Ping | Shutdown
)
FromWorker = (
    Hello
    | Surveyed
    | Opened
    | FootprintPredicted
    | LlmForetold
    | Refused
    | Loaded
    | Released
    | Measured
    | Progress
    | StageFinished
    | StageFailed
    | Pong
)

_ENCODER = msgspec.msgpack.Encoder()
_TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
# AssertionError: an Execution checks its own rules (a tile belongs to tiled decoding) when it is built.
NOT_A_MESSAGE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AssertionError)


def encode(message: Message) -> bytes:
    """The payload of one frame."""
    return _ENCODER.encode(message)


def decode_to_worker(payload: bytes) -> ToWorker:
    """Read what a parent said."""
    try:
        return _TO_WORKER.decode(payload)
    except NOT_A_MESSAGE as error:
        raise ProtocolError(f"not a message for a worker: {error}") from error


def decode_from_worker(payload: bytes) -> FromWorker:
    """Read what a worker said."""
    try:
        return _FROM_WORKER.decode(payload)
    except NOT_A_MESSAGE as error:
        raise ProtocolError(f"not a message from a worker: {error}") from error
