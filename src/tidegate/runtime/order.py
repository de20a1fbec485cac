"""Orders: what one run of `tidegate image` was asked to do, checked and complete.

Owns ImageOrder, the requests of a batch, the key under which its finished work is kept, and what any order
has to keep to. Reading options
from a command line is `tidegate.cli.image`; carrying the order out is `oneshot`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tidegate.core.faults import ClientError
from tidegate.core.stage import Stage, relay
from tidegate.runtime.views import JobOrder
from tidegate.wire.messages import ImageRequest, Opened

# 2 to the power of 32 seeds are enough for anybody, and what other programs accept.
SEED_MAX: Final = 2**32 - 1
# One request for more images than this is a mistake; a client may send several.
COUNT_MAX: Final = 64
SIDE_MAX: Final = 16_384
STEPS_MAX: Final = 1_000
# The engine's tokenizer takes time with the square of a word's length: a second for this one, but minutes
# for twenty thousand letters. Scripts without spaces have punctuation; signs in a row are a word too.
WORD_MAX: Final = 2_000
_ENDLESS: Final = re.compile(r"[^\W_]{N}|(?:[^\w\s]|_){N}".replace("N", str(WORD_MAX + 1)))


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the user typed, with nothing looked up yet; kept with unfinished work, so that it can be resumed.

    Paths are absolute. `companions` are files by role (vae, taesd, clip_l, ...).
    """

    prompt: str
    negative: str = ""
    model: str = ""
    diffusion_model: str = ""
    companions: dict[str, str] = {}
    width: int = 512
    height: int = 512
    steps: int = 20
    seed: int = 42
    cfg: float = 7.0
    guidance: float = 3.5
    sampler: str = ""
    scheduler: str = ""
    clip_skip: int = -1
    init: str = ""
    strength: float = 0.75
    batch: int = 1
    output: str = ""
    device: str = "auto"
    threads: int = 0
    ram_max_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InitImage:
    """The picture to start from, already at the size of the request: rows of RGB pixels."""

    path: Path
    pixels: bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOrder:
    """Everything a run needs. `files` are paths by role, `fingerprints` the same files' fingerprints.
    `notice` is what the user should know of how they were chosen.
    """

    files: dict[str, str]
    fingerprints: dict[str, str]
    model_name: str
    request: ImageRequest
    outputs: tuple[Path, ...]
    device: str = "auto"
    init: InitImage | None = None
    threads: int = 0
    ram_max_bytes: int = 0
    resumes: bool = False
    wish: Wish | None = None
    notice: str = ""
    flash_attention: bool = True
    direct_convolution: bool = True

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.outputs)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of each image, in order."""
        return relay(from_image=self.init is not None)

    def request_of(self, index: int) -> ImageRequest:
        """The request of one image: image n of a batch is what seed + n gives alone."""
        seed = (self.request.seed + index) % (SEED_MAX + 1)
        return msgspec.structs.replace(self.request, seed=seed)

    def seed_of(self, index: int) -> int:
        """The seed of one image."""
        return self.request_of(index).seed

    @property
    def key(self) -> str:
        """Names the finished work: equal orders have equal keys, whatever device they run on."""
        told = {
            "files": self.fingerprints,
            "request": msgspec.to_builtins(self.request),
            "count": self.count,
            "init": self.init.sha256 if self.init else "",
            "flash_attention": self.flash_attention,
            "direct_convolution": self.direct_convolution,
        }
        return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:24]


def check_request(request: ImageRequest, opened: Opened) -> None:
    """Refuse what is not for the engine: unknown names, sizes off its grid, endless words."""
    check_words(request.prompt)
    check_words(request.negative)
    check_name("sampler", request.sampler, opened.samplers)
    check_name("scheduler", request.scheduler, opened.schedulers)
    check_multiple("width", request.width, opened.size_multiple)
    check_multiple("height", request.height, opened.size_multiple)


def check_words(prompt: str) -> None:
    """Refuse a word that would keep the tokenizer busy for minutes."""
    found = _ENDLESS.search(prompt)
    if found is not None:
        raise ClientError(
            f"The prompt has a word of more than {WORD_MAX} letters, which begins with {found[0][:20]!r}.",
            remedy="Divide it by spaces.",
            code="endless_word",
        )


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Refuse a name that the engine does not know; the empty name is the model's default."""
    if not name or name in known:
        return
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    remedy = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
    raise ClientError(f"There is no {what} {name!r}.", remedy=remedy, code=f"unknown_{what}")


def check_multiple(what: str, pixels: int, multiple: int) -> None:
    """Refuse a side that is not on the model's grid."""
    if pixels % multiple == 0:
        return
    below, above = pixels // multiple * multiple, (pixels // multiple + 1) * multiple
    raise ClientError(
        f"The {what} {pixels} is not a multiple of {multiple}.",
        remedy=f"Use {below} or {above}." if below else f"Use {above}.",
        code="bad_size",
    )


def check_order(order: JobOrder) -> None:
    """Refuse what no model could make, before a model is looked at. Raises ClientError."""
    request = order.request
    if not 1 <= order.count <= COUNT_MAX:
        raise ClientError(
            f"{order.count} images cannot be asked for at once.",
            remedy=f"Ask for 1 to {COUNT_MAX}.",
            code="bad_count",
        )
    if not (0 < request.width <= SIDE_MAX and 0 < request.height <= SIDE_MAX):
        raise ClientError(
            f"An image of {request.width} by {request.height} pixels cannot be made.",
            remedy=f"A side has 1 to {SIDE_MAX} pixels.",
            code="bad_size",
        )
    if not 1 <= request.steps <= STEPS_MAX:
        raise ClientError(
            f"{request.steps} steps cannot be made.",
            remedy=f"Ask for 1 to {STEPS_MAX}.",
            code="bad_steps",
        )
    init = order.init
    if init is not None and (
        (init.width, init.height) != (request.width, request.height)
        or len(init.pixels) != init.width * init.height * 3
    ):
        raise ClientError(
            "The given picture is not of the size that was asked for.",
            remedy="Scale it to width and height of the request first.",
            code="bad_init",
        )
