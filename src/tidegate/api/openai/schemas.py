"""Schemas of images in this dialect: what may be asked, what is answered, what is streamed.

Owns the field names and values of OpenAI's image API, and our further fields, which are optional. Fields that
mean nothing to a local model (`quality`, `style`, `moderation`, `user`) are taken and left alone.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tidegate.api.wishes import PROMPT_MAX, SIDE_MAX, Name, Prompt, Sampling
from tidegate.runtime.pictures import OutputFormat

AUTO: Final = "auto"
IMAGES_MAX: Final = 10
PARTIAL_MAX: Final = 3
# How many unknown fields are named in a notice, and how much of each name.
UNKNOWN_MAX: Final = 10
UNKNOWN_NAME_MAX: Final = 40
_SIZE: Final = r"^(auto|[1-9][0-9]{1,4}x[1-9][0-9]{1,4})$"


def _size(text: str) -> str:
    if text != AUTO and max(int(side) for side in text.split("x")) > SIDE_MAX:
        raise ValueError(f"no side is longer than {SIDE_MAX}")
    return text


SizeText = Annotated[str, Field(pattern=_SIZE), AfterValidator(_size)]
FormatName = Literal["png", "jpeg", "webp"]


class ImagesRequest(Sampling):
    """What both ways to ask for images have in common. Fields of other servers are not refused, but named in
    a notice, so that a slip of the pen is seen.
    """

    model_config = ConfigDict(extra="allow")

    prompt: Prompt
    model: Name = Field(default="", description="A name from /v1/models; empty: the default.")
    n: int | None = Field(default=1, ge=1, le=IMAGES_MAX)
    size: SizeText | None = Field(default=AUTO, description="Such as 512x512; auto: the server's default.")
    output_format: FormatName | None = "png"
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Quality of jpeg and webp."
    )
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    background: Literal["auto", "opaque"] | None = "auto"
    quality: Name | None = None
    user: Name | None = None
    stream: bool | None = False
    partial_images: int | None = Field(default=None, ge=0, le=PARTIAL_MAX)
    negative_prompt: str = Field(default="", max_length=PROMPT_MAX, description="What not to see.")

    @property
    def unknown(self) -> tuple[str, ...]:
        """A notice about the fields that mean nothing here, or none."""
        names = [name[:UNKNOWN_NAME_MAX] for name in self.model_extra or {}]
        if not names:
            return ()
        more = f" and {len(names) - UNKNOWN_MAX} more" if len(names) > UNKNOWN_MAX else ""
        return (
            f"These fields mean nothing here and were left alone: {', '.join(names[:UNKNOWN_MAX])}{more}.",
        )

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height, or None for the default."""
        if self.size in (None, AUTO):
            return None
        width, height = re.split("x", self.size or "")
        return int(width), int(height)

    @property
    def format(self) -> OutputFormat:
        """The format of the files."""
        return OutputFormat(self.output_format or "png")

    @property
    def compression(self) -> int:
        """Quality from 0 to 100; 100 is what that API takes for its default."""
        return 95 if self.output_compression is None else self.output_compression


class GenerationRequest(ImagesRequest):
    """Images from a prompt."""

    style: Name | None = None
    moderation: Name | None = None


class ImageData(BaseModel):
    """One image: its bytes as base64, or where it is. `seed` is ours."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int
    image: str = Field(description="Its id under /api/images.")


class Usage(BaseModel):
    """That API counts tokens; a local image costs none."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"text_tokens": 0, "image_tokens": 0}


class ImagesAnswer(BaseModel):
    """The images. `job` and `notices` are ours: what was moved, tiled or retried for them, in words."""

    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: FormatName
    size: str
    usage: Usage = Usage()
    job: str
    notices: list[str]


class StreamedImage(BaseModel):
    """An event of a stream: a partial image, or a finished one."""

    type: str
    b64_json: str
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: FormatName
    quality: str = AUTO
    size: str

    def event(self, **further: object) -> dict[str, object]:
        """As plain data, with the fields that only this kind of event has."""
        return {**self.model_dump(), **further}


class EditRequest(ImagesRequest):
    """Images from a picture and a prompt, with the fields of a form already taken apart."""

    input_fidelity: Literal["high", "low"] | None = None

    @classmethod
    def of_form(cls, fields: dict[str, str]) -> Self:
        """Out of a form, where every value is a text. Raises pydantic's ValidationError."""
        return cls.model_validate(fields, strict=False)
