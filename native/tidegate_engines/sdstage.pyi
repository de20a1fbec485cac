"""stable-diffusion.cpp in stages: encode, denoise, decode; each where it is told, counted to the byte.

Shapes are NumPy shapes, slowest axis first; pixels are uint8 (height, width, 3); latents float32 (1,
channels, height, width), `latent_shape` tells which. Bytes are bytes. Every call releases the GIL; calls into
one process are carried out one at a time, because the engine keeps process-wide state.

A component (`text_encoder`, `diffusion`, `vae`) rests at a placement: `card`, `cpu`, or `stream` (weights in
RAM, visiting the card in pieces that aim at `budget_bytes`; 0 = the whole component for each computation).
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

ComponentName = Literal["text_encoder", "diffusion", "vae"]
PlacementName = Literal["card", "stream", "cpu"]
StageName = Literal["encode", "encode_image", "denoise", "decode"]
Embeddings = dict[str, NDArray[np.float32] | NDArray[np.int32]]
Progress = Callable[[int, int, NDArray[np.uint8] | None], bool]

class EngineError(RuntimeError):
    """Anything the engine refused; the message is one sentence."""

class InvalidModel(EngineError):
    """A file cannot be read, a component is missing, or a tensor has the wrong shape."""

class InvalidRequest(EngineError):
    """A value the engine cannot work with: size, steps, sampler, a component that is not loaded."""

class Unsupported(EngineError):
    """Known to the engine, not supported by tidegate yet; the message names it."""

class OutOfMemory(EngineError):
    """An allocation was refused. What the call had allocated is freed."""

class NotFinite(EngineError):
    """A NaN or an infinity in embeddings, a sampling step, a latent or decoded floats."""

class Cancelled(EngineError):
    """The progress callback returned False."""

class Device:
    name: str  # "CPU", "CUDA0", "Vulkan0", "VCARD0"
    description: str
    kind: Literal["cpu", "gpu"]
    total_bytes: int
    free_bytes: int

class ComponentFacts(TypedDict):
    tensor_count: int
    file_bytes: int
    types: dict[str, int]  # ggml type name -> number of tensors

class StageBytes(TypedDict):
    card_bytes: int
    card_peak_bytes: int
    ram_bytes: int
    ram_peak_bytes: int

class Request:
    """One image. A batch is several requests with consecutive seeds."""

    def __init__(
        self,
        *,
        prompt: str = "",
        negative: str = "",
        width: int = 512,
        height: int = 512,
        steps: int = 20,
        cfg: float = 7.0,
        guidance: float = 3.5,
        seed: int = 42,
        sampler: str = "",  # empty: the model's default
        scheduler: str = "",
        clip_skip: int = -1,
        strength: float = 0.75,  # image to image: 1 ignores the image, 0 keeps it
        eta: float | None = None,
        flow_shift: float | None = None,
    ) -> None: ...
    @property
    def prompt(self) -> str: ...
    @property
    def negative(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def cfg(self) -> float: ...
    @property
    def guidance(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def sampler(self) -> str: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def clip_skip(self) -> int: ...
    @property
    def strength(self) -> float: ...

class Footprint:
    """What a stage needs, counted on a dry run of the engine's own code.

    Each allocation is rounded up to the card's granularity. Not in it: the device context of the process and
    the device's scratch pool, which the card descriptor knows.
    """

    @property
    def weights_bytes(self) -> int: ...  # of the component, where they rest
    @property
    def compute_bytes(self) -> int: ...  # everything else allocated at the peak, where the graph runs
    @property
    def card_peak_bytes(self) -> int: ...  # 0 on cpu
    @property
    def ram_peak_bytes(self) -> int: ...  # weights for stream, everything for cpu, 0 for card

class Checkpoint:
    """An opened model: headers are read (about 0.2 s), no weights, no device memory.

    files: paths by kind: model, diffusion_model, clip_l, clip_g, t5xxl, llm, vae, taesd.
    prediction: "eps" or "v" for SD 2.x, whose files do not say; empty otherwise.
    granularity_bytes: what the card rounds allocations up to; 0 asks a virtual card, takes 2 MiB for a real
    one. Raises InvalidModel, InvalidRequest (unknown device or option), Unsupported (a family by name).
    """

    def __init__(
        self,
        files: Mapping[str, str],
        *,
        device: str = "CPU",
        flash_attention: bool = True,
        direct_convolution: bool = True,
        threads: int = 0,
        weight_type: str = "",
        prediction: str = "",
        granularity_bytes: int = 0,
    ) -> None: ...
    @property
    def family(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def size_multiple(self) -> int: ...
    @property
    def default_sampler(self) -> str: ...
    @property
    def components(self) -> dict[ComponentName, ComponentFacts]: ...
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latent of an image of this size in pixels."""
    def check(self, request: Request) -> None:
        """Raises InvalidRequest, naming the value, if the model cannot make this image."""
    def load(
        self,
        component: ComponentName,
        placement: PlacementName = "card",
        *,
        budget_bytes: int = 0,
        encoder: bool = False,
    ) -> None:
        """Allocates and reads the weights; what was loaded at another placement is released first.

        encoder: with the VAE, its encoder too (image to image). Raises OutOfMemory, InvalidModel.
        """
    def release(self, component: ComponentName) -> None:
        """Frees weights, compute buffers, the backend and its pool. Nothing happens if it is not loaded."""
    def loaded(self) -> dict[ComponentName, PlacementName]: ...
    def encode(self, request: Request) -> Embeddings:
        """Prompts to named arrays ("cond.c_crossattn", ...): all that denoise needs of them."""
    def encode_image(
        self, request: Request, rgb: NDArray[np.uint8], *, tile: int = 0, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Pixels (scaled to the request's size) to a latent, random by its seed. tile in latent pixels."""
    def denoise(
        self,
        request: Request,
        embeddings: Mapping[str, NDArray[np.float32] | NDArray[np.int32]],
        *,
        init_latent: NDArray[np.float32] | None = None,
        tape: str = "",
        tape_owner: bytes = b"",
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Samples a latent. tape: a file that is replayed, then continued: bit-identical after any crash.

        tape_owner: up to 32 bytes that name the image; another owner's tape is begun anew. A tape that cannot
        be kept is given up without harm; `tape_error` says why.
        progress(step, steps, preview) is called between steps; preview is a small projection, or None at step
        0. Raises Cancelled when it returns False.
        """
    def tape_error(self) -> str:
        """Why the tape of the last `denoise` could not be kept, or an empty string."""
    def decode(
        self,
        request: Request,
        latent: NDArray[np.float32],
        *,
        tile: int = 0,
        progress: Progress | None = None,
    ) -> NDArray[np.uint8]:
        """Latent to pixels. tile: side of a tile in latent pixels, 0 = whole; progress counts tiles."""
    def predict(
        self,
        stage: StageName,
        request: Request,
        placement: PlacementName = "card",
        *,
        tile: int = 0,
        budget_bytes: int = 0,
    ) -> Footprint:
        """The footprint of a stage, without allocating: nothing need be loaded, headers suffice."""
    def stage_bytes(self) -> StageBytes:
        """Bytes in the engine's buffers now, and their peaks since `reset_peaks`."""
    def reset_peaks(self) -> None: ...

def devices() -> list[Device]: ...
def attach_virtual_card(ledger_path: str) -> list[str]:
    """Registers the cards of an existing ledger; their device names. Once per process, before a
    Checkpoint."""

def vcard_build_id() -> str: ...
def engine_build() -> str:
    """Sources, ggml version and flags: part of every fingerprint, as results may differ between builds."""

def samplers() -> list[str]: ...
def schedulers() -> list[str]: ...
def architecture(family: str, component: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, ggml type, shape) of each tensor. family: sd1-tiny, sd15, sdxl, sd3; component: also `taesd`."""

def set_log_file(descriptor: int) -> None:
    """Where the engine's own messages go; -1: nowhere (the default)."""
