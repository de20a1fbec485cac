"""Wishes: what a client asks for, checked field by field, and the way from there to a JobOrder.

Owns the fields that both dialects share, with their bounds. Which sampler or grid a model has is judged
behind the gate; a dialect's own fields are its own.
"""

from __future__ import annotations

import base64
import binascii
import io
import secrets
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from tidegate.api.lobby import Lobby
from tidegate.core.faults import ClientError
from tidegate.runtime import pictures
from tidegate.runtime.order import SEED_MAX
from tidegate.runtime.settings import ImageDefaults
from tidegate.runtime.views import JobOrder, Picture
from tidegate.wire.messages import ImageRequest

PROMPT_MAX: Final = 20_000
SIDE_MAX: Final = 16_384
COUNT_MAX: Final = 16
# Base64 is four characters for three bytes; the body's own bound comes first.
PICTURE_TEXT_MAX: Final = 64 * 2**20

Name = Annotated[str, Field(max_length=200)]
Prompt = Annotated[str, Field(min_length=1, max_length=PROMPT_MAX)]


class Body(BaseModel):
    """Base of all request bodies: a number is a number, not a text of digits, and finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Sampling(Body):
    """How to sample; what is left out is the server's default, and then the model's."""

    steps: int | None = Field(default=None, ge=1, le=1_000)
    cfg: float | None = Field(default=None, ge=0, le=100, description="How closely to follow the prompt.")
    guidance: float = Field(
        default=3.5, ge=0, le=100, description="Distilled guidance, where a model has it."
    )
    seed: int | None = Field(default=None, ge=-1, le=SEED_MAX, description="-1 or none: one by chance.")
    sampler: Name = Field(default="", description="Such as euler_a; empty: the model's own.")
    scheduler: Name = Field(default="", description="Such as karras; empty: the model's own.")
    clip_skip: int = Field(default=-1, ge=-1, le=12, description="-1: the model's own.")
    strength: float = Field(default=0.75, ge=0, le=1, description="How much of a given picture is redone.")
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first; waiting counts too.")
    enhance: bool = Field(
        default=False, description="Let a language model make a prompt of the idea that `prompt` is."
    )


def request_of(
    prompt: str,
    sampling: Sampling,
    *,
    negative: str,
    size: tuple[int, int] | None,
    defaults: ImageDefaults,
    idea: str = "",
) -> ImageRequest:
    """The engine's request, complete; `idea` is what the prompt was made of."""
    width, height = size or (defaults.width, defaults.height)
    seed = (
        sampling.seed if sampling.seed is not None and sampling.seed >= 0 else secrets.randbelow(SEED_MAX + 1)
    )
    return ImageRequest(
        prompt=prompt,
        negative=negative,
        width=width,
        height=height,
        steps=defaults.steps if sampling.steps is None else sampling.steps,
        cfg=defaults.cfg if sampling.cfg is None else sampling.cfg,
        guidance=sampling.guidance,
        seed=seed,
        sampler=sampling.sampler or defaults.sampler,
        scheduler=sampling.scheduler or defaults.scheduler,
        clip_skip=sampling.clip_skip,
        strength=sampling.strength,
        idea=idea,
    )


async def order_of(
    lobby: Lobby,
    request: ImageRequest,
    *,
    model: str,
    count: int,
    priority: int,
    idempotency_key: str,
    picture: bytes | None = None,
) -> JobOrder:
    """The order, with the picture decoded. Raises ClientError for what is too large or unreadable."""
    pixels_max = lobby.settings.listen.pixels_max
    if request.width * request.height > pixels_max:
        raise ClientError(
            f"{request.width}x{request.height} is more than the {pixels_max} pixels that are made here.",
            remedy="Ask for a smaller size, or raise pixels_max under [listen].",
            code="bad_size",
        )
    init = None
    if picture is not None:
        pixels = await lobby.off_loop(
            pictures.fitted, io.BytesIO(picture), request.width, request.height, pixels_max=pixels_max
        )
        init = Picture(width=request.width, height=request.height, pixels=pixels)
    return JobOrder(
        request=request,
        model=model,
        count=count,
        init=init,
        priority=priority,
        idempotency_key=idempotency_key,
    )


def picture_bytes(text: str) -> bytes:
    """A file out of base64, also out of a data URL. Raises ClientError."""
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ClientError(
            "The picture is not base64.",
            remedy="Send the bytes of a PNG, JPEG or WebP file as base64.",
            code="picture_unreadable",
        ) from error
