"""Tagging pictures: tags, a caption and a rating for each, from a language model that sees.

Owns `/api/tag`. The form of an answer is `tidegate.api.tagging`; pictures are decoded by `tidegate.api.eyes`.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from tidegate.api import eyes, tagging
from tidegate.api.lobby import Lobby, LobbyHere
from tidegate.api.native.envelope import documented
from tidegate.api.presence import unless_gone
from tidegate.api.replies import asked, whole
from tidegate.api.tagging import Rating, TagStyle
from tidegate.api.wishes import PICTURE_TEXT_MAX, Body, Name, picture_bytes
from tidegate.core.faults import ClientError
from tidegate.runtime.order import SEED_MAX
from tidegate.runtime.settings_tasks import INSTRUCTION_MAX
from tidegate.wire import asks

router = APIRouter(tags=["language models"])
TAGS_MAX: Final = 200


class TagRequest(Body):
    """Pictures to be tagged: files, images of the gallery, or both."""

    images: list[Annotated[str, Field(max_length=PICTURE_TEXT_MAX)]] = Field(
        default=[], max_length=asks.PICTURES_MAX, description="Files as base64, or as data: URLs."
    )
    gallery: list[Name] = Field(
        default=[], max_length=asks.PICTURES_MAX, description="Ids of images under /api/images."
    )
    style: TagStyle = Field(default=TagStyle.BOORU, strict=False)
    language_model: Name = Field(default="", description="One that sees; empty: as the settings say.")
    instruction: str = Field(
        default="", max_length=INSTRUCTION_MAX, description="Instead of the one for the style."
    )
    tags_max: int | None = Field(default=None, ge=1, le=TAGS_MAX)
    seed: int | None = Field(default=None, ge=0, le=SEED_MAX)
    priority: int = Field(default=0, ge=-100, le=100)


class TagsOut(BaseModel):
    """One picture. `image` is its id in the gallery, or "". `is_cut`: the model's context was too small for
    all of it.
    """

    image: str
    rating: Rating
    caption: str
    tags: list[str]
    is_cut: bool


class TagAnswer(BaseModel):
    """The pictures in their order: files first, then those of the gallery."""

    results: list[TagsOut]
    style: TagStyle
    language_model: str


@router.post("/api/tag", response_model=TagAnswer, responses=documented(404, 409, 429, 503))
async def tag(wish: TagRequest, request: Request, lobby: LobbyHere) -> TagAnswer:
    """Say what pictures show: tags, a caption and a rating for each."""
    if not 1 <= len(wish.images) + len(wish.gallery) <= asks.PICTURES_MAX:
        raise ClientError(
            f"1 to {asks.PICTURES_MAX} pictures are tagged at once.",
            remedy="Send `images`, `gallery`, or both.",
            code="too_many_pictures",
        )
    settings = lobby.settings.tag
    bodies = [
        tagging.chat_of(
            picture,
            style=wish.style,
            instruction=wish.instruction or settings.instruction,
            tags_max=wish.tags_max or settings.tags_max,
            temperature=settings.temperature,
            seed=secrets.randbelow(SEED_MAX + 1) if wish.seed is None else wish.seed,
        )
        for picture in await _pictures(wish, lobby)
    ]
    handles = await asked(
        lobby.gate, bodies, model=wish.language_model or settings.model, priority=wish.priority
    )
    replies = await unless_gone(request, whole(lobby.gate, handles))
    names = [""] * len(wish.images) + wish.gallery
    results = []
    for name, reply in zip(names, replies, strict=True):
        found = tagging.read(reply.text)
        results.append(
            TagsOut(
                image=name,
                rating=found.rating,
                caption=found.caption,
                tags=list(found.tags),
                is_cut=found.is_cut,
            )
        )
    return TagAnswer(results=results, style=wish.style, language_model=handles[0].model)


async def _pictures(wish: TagRequest, lobby: Lobby) -> list[asks.Picture]:
    files = [picture_bytes(text) for text in wish.images]
    files += [await lobby.gate.image_png(image) for image in wish.gallery]
    return [await eyes.seen(file, lobby) for file in files]
