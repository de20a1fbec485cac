"""The options of `tidegate image`, by the names that users of these engines know, and their first checks.

Owns the option types, and the way from what was typed (a Wish) to an ImageOrder: every check that needs no
engine, in the order in which they are cheap. Each refusal is one line with a remedy. The command itself is
`tidegate.cli.image`; what only the opened model can judge is `tidegate.runtime.order.check_request`.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from tidegate.core.faults import ClientError
from tidegate.runtime import checkpoints, model_choice, pictures, png
from tidegate.runtime.cards.device import parse_device
from tidegate.runtime.cards.sizes import parse_size
from tidegate.runtime.models.assembly import ImageFiles
from tidegate.runtime.order import SEED_MAX, ImageOrder, InitImage, Wish
from tidegate.wire.messages import ImageRequest

PIXELS_MAX: Final = 8192 * 8192
STEPS_MAX: Final = 1000
BATCH_MAX: Final = 100
PROMPT_MAX: Final = 20_000
THREADS_MAX: Final = 1024
RANDOM_SEED: Final = -1
AUTO: Final = "auto"
DEFAULT_OUTPUT: Final = "image.png"
ROLES: Final = ("vae", "taesd", "clip_l", "clip_g", "t5xxl", "llm")

_SAMPLING, _MODEL, _MACHINE = "Sampling", "Model files", "Machine"

Prompt = Annotated[
    str, typer.Argument(help="What to see. May be left out with --resume.", show_default=False)
]
Output = Annotated[
    str, typer.Option("-o", "--output", help="The PNG file to write.", show_default=DEFAULT_OUTPUT)
]
Negative = Annotated[str, typer.Option(help="What not to see.", rich_help_panel=_SAMPLING)]
Size = Annotated[str, typer.Option(help="Width x height in pixels.", rich_help_panel=_SAMPLING)]
Steps = Annotated[int, typer.Option(help="Sampling steps.", rich_help_panel=_SAMPLING)]
Seed = Annotated[int, typer.Option(help="Seed; -1 takes one by chance.", rich_help_panel=_SAMPLING)]
Cfg = Annotated[float, typer.Option(help="How closely to follow the prompt.", rich_help_panel=_SAMPLING)]
Guidance = Annotated[float, typer.Option(help="Distilled guidance, for models that have it.")]
Sampler = Annotated[str, typer.Option(help="Sampler, such as euler_a; empty: the model's own.")]
Scheduler = Annotated[str, typer.Option(help="Schedule of the noise, such as karras.")]
ClipSkip = Annotated[int, typer.Option(help="Last layers of CLIP to leave out; -1: the model's own.")]
Init = Annotated[str, typer.Option(help="A picture to start from.", show_default=False)]
Strength = Annotated[float, typer.Option(help="How much of the --init picture is redone, up to 1.")]
Batch = Annotated[int, typer.Option(help="How many images, with seed, seed + 1, ...")]
Model = Annotated[str, typer.Option(help="A checkpoint: a file, or a name in the models folder.")]
DiffusionModel = Annotated[str, typer.Option(help="The diffusion model alone.")]
Vae = Annotated[str, typer.Option(help="A VAE in a file of its own, used instead.", show_default=False)]
Taesd = Annotated[
    str, typer.Option(help="A tiny autoencoder: faster, coarser decode, less memory.", show_default=False)
]
ClipL = Annotated[
    str, typer.Option(help="The CLIP-L text encoder, in a file of its own.", show_default=False)
]
ClipG = Annotated[
    str, typer.Option(help="The CLIP-G text encoder, in a file of its own.", show_default=False)
]
T5xxl = Annotated[
    str, typer.Option(help="The T5-XXL text encoder, in a file of its own.", show_default=False)
]
Llm = Annotated[
    str, typer.Option(help="A language model as text encoder, where a model has one.", show_default=False)
]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda:0, vulkan:0, rocm:0 or virtual:3GiB.")]
Threads = Annotated[int, typer.Option(help="Threads of the CPU; 0: as many as there are cores.")]
Ram = Annotated[str, typer.Option(help="The most RAM to use, such as 8GiB.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what an interrupted run saved.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a report for programs.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what the engine says.")]
Alone = Annotated[bool, typer.Option("--alone", help="Make it here, even if a server runs.")]


def wish_of(typed: Mapping[str, object]) -> Wish:
    """What was typed, by the names of the options, as a Wish. Raises ClientError."""
    if not str(typed["prompt"]).strip():
        raise ClientError(
            "There is no prompt.",
            remedy='Say what to see: tidegate image "a lighthouse at dusk"',
            code="no_prompt",
        )
    width, height = size_of(str(typed["size"]))
    found = {name: typed[name] for name in Wish.__struct_fields__ if name in typed}
    found |= {"width": width, "height": height, "ram_max_bytes": _ram(typed)}
    found["seed"] = secrets.randbelow(SEED_MAX + 1) if typed["seed"] == RANDOM_SEED else typed["seed"]
    found["companions"] = {role: absolute(str(typed[role])) for role in ROLES if typed[role]}
    found["init"] = absolute(str(typed["init"])) if typed["init"] else ""
    found["output"] = absolute(str(typed["output"] or DEFAULT_OUTPUT))
    return msgspec.convert(found, Wish)


def wish_again(typed: Mapping[str, object]) -> Wish:
    """The wish that was interrupted last, with what the user wants to be different this time."""
    wish = checkpoints.latest_wish()
    if wish is None:
        raise ClientError(
            "There is nothing to resume.",
            remedy='Start with: tidegate image "a lighthouse at dusk" -o out.png',
            code="no_job",
        )
    changed: dict[str, object] = {"output": absolute(str(typed["output"]))} if typed["output"] else {}
    changed |= {"device": typed["device"]} if typed["device"] != AUTO else {}
    changed |= {"threads": typed["threads"]} if typed["threads"] else {}
    changed |= {"ram_max_bytes": _ram(typed)} if typed["ram"] else {}
    return msgspec.convert({**msgspec.structs.asdict(wish), **changed}, Wish)


def absolute(path: str) -> str:
    """A path that means the same from any folder. Raises ClientError."""
    _check_readable(path, what="path")
    try:
        named = Path(path).expanduser()
    except RuntimeError:  # ~nobody: there is no such user, so it is a name like any other
        named = Path(path)
    try:
        return str(named.absolute())
    except OSError as error:
        raise ClientError(
            f"The current folder is gone, so {path} leads nowhere.",
            remedy="Go to another folder, or write the whole path.",
            code="no_current_folder",
        ) from error


def _check_readable(text: str, *, what: str) -> None:
    """Refuse what has no UTF-8: half a pair of surrogates, or bytes in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text[max(0, error.start - 20) : error.start + 20].encode("ascii", "backslashreplace").decode()
        raise ClientError(
            f"The {what} is not valid text in UTF-8: {shown}.", remedy="Write it in UTF-8.", code="not_text"
        ) from error
    if "\0" in text:
        raise ClientError(f"The {what} has a NUL character in it.", remedy="Leave it out.", code="not_text")


def _ram(typed: Mapping[str, object]) -> int:
    return parse_size(str(typed["ram"]), what="amount of RAM") if typed["ram"] else 0


def size_of(text: str) -> tuple[int, int]:
    """Width and height in pixels out of `512x512`."""
    shape = re.fullmatch(r"\s*(\d{1,9})\s*[x×]\s*(\d{1,9})\s*", text, re.IGNORECASE)
    if shape is None:
        raise ClientError(
            f"{text!r} is no size.",
            remedy="Write width x height in pixels, such as 512x512.",
            code="bad_size",
        )
    width, height = int(shape[1]), int(shape[2])
    if not width or not height:
        raise ClientError(
            f"{width}x{height} is an empty image.", remedy="Write a size such as 512x512.", code="bad_size"
        )
    if width * height > PIXELS_MAX:
        raise ClientError(
            f"{width}x{height} is {width * height} pixels, and at most {PIXELS_MAX} are made.",
            remedy="Use a smaller --size, such as 1024x1024.",
            code="bad_size",
        )
    return width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A wish whose numbers, places and picture are good; which files its model has is not looked up yet."""

    wish: Wish
    outputs: tuple[Path, ...]
    init: InitImage | None

    @property
    def request(self) -> ImageRequest:
        """The first image, in the words of the engine."""
        names = (name for name in ImageRequest.__struct_fields__ if name in Wish.__struct_fields__)
        return ImageRequest(**{name: getattr(self.wish, name) for name in names})


def checked(wish: Wish) -> Checked:
    """Check everything that needs neither engine nor model. Raises ClientError."""
    for path in (wish.model, wish.diffusion_model, wish.init, wish.output, *wish.companions.values()):
        _check_readable(path, what="path")
    _check_numbers(wish)
    parse_device(wish.device)
    outputs = _outputs(wish)
    for output in outputs:
        png.check_writable(output)
    init = _init_image(Path(wish.init), wish.width, wish.height) if wish.init else None
    return Checked(wish=wish, outputs=outputs, init=init)


def files_of(wish: Wish) -> ImageFiles:
    """The files of the model that is meant. Raises ClientError."""
    return model_choice.chosen_files(
        wish.model,
        {role: Path(path) for role, path in wish.companions.items()},
        diffusion_model=wish.diffusion_model,
    )


def order_of(wish: Wish, *, resumes: bool) -> ImageOrder:
    """Check everything that needs no engine and look up the files. Raises ClientError."""
    return completed(checked(wish), resumes=resumes)


def completed(ready: Checked, *, resumes: bool) -> ImageOrder:
    """The order, with the files looked up. Raises ClientError."""
    wish, files = ready.wish, files_of(ready.wish)
    return ImageOrder(
        files=files.files,
        fingerprints=model_choice.fingerprints(files),
        model_name=files.main.name,
        request=ready.request,
        outputs=ready.outputs,
        device=wish.device,
        init=ready.init,
        threads=wish.threads,
        ram_max_bytes=wish.ram_max_bytes,
        resumes=resumes,
        wish=wish,
        notice=model_choice.choice_told(files, was_named=bool(wish.model or wish.diffusion_model)),
    )


def _check_numbers(wish: Wish) -> None:
    _check_range("--steps", wish.steps, low=1, high=STEPS_MAX)
    _check_range("--batch", wish.batch, low=1, high=BATCH_MAX)
    _check_range("--seed", wish.seed, low=0, high=SEED_MAX)
    _check_range("--threads", wish.threads, low=0, high=THREADS_MAX)
    _check_range("--clip-skip", wish.clip_skip, low=-1, high=12)
    _check_range("--cfg", wish.cfg, low=0, high=100)
    _check_range("--guidance", wish.guidance, low=0, high=100)
    _check_range("--strength", wish.strength, low=0, high=1)
    for what, text in (("prompt", wish.prompt), ("negative prompt", wish.negative)):
        _check_readable(text, what=what)
        if len(text) > PROMPT_MAX:
            raise ClientError(
                f"The {what} has {len(text)} characters, and at most {PROMPT_MAX} are read.",
                remedy="Shorten it.",
                code="prompt_too_long",
            )


def _check_range(option: str, value: float, *, low: int, high: int) -> None:
    if math.isfinite(value) and low <= value <= high:
        return
    raise ClientError(
        f"{option} {value} is out of range.",
        remedy=f"Use a number from {low} to {high}.",
        code="out_of_range",
    )


def _outputs(wish: Wish) -> tuple[Path, ...]:
    path = Path(wish.output)
    if not path.name:
        raise png.unwritable(path, "it is a folder")
    if path.suffix and path.suffix.lower() != ".png" and not _is_there(path):
        raise ClientError(
            f"{path.name} is not the name of a PNG file, and only PNG is written.",
            remedy=f"Use -o {path.stem}.png.",
            code="output_not_png",
        )
    if wish.batch == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, wish.batch + 1))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long a name, or a folder that may not be looked into
        return False


def _init_image(path: Path, width: int, height: int) -> InitImage:
    """Read a picture and bring it to the size of the request, cut evenly where the shapes differ."""
    what, remedy = f"picture {path}", "Give a PNG, JPEG or WebP file with --init."
    try:
        with path.open("rb") as file:
            pixels = pictures.fitted(file, width, height, pixels_max=PIXELS_MAX, what=what, remedy=remedy)
    except FileNotFoundError as error:
        raise pictures.unreadable(what, "there is no such file", remedy=remedy) from error
    except OSError as error:  # a folder, a name that is too long, a file of somebody else
        why = error.strerror or str(error)
        raise pictures.unreadable(what, f"{why[:1].lower()}{why[1:]}", remedy=remedy) from error
    return InitImage(path=path, pixels=pixels, sha256=hashlib.sha256(pixels).hexdigest())
