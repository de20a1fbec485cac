"""Enhancing prompts: a short idea becomes a prompt in the style of an image model's family.

Owns `/api/enhance`. Styles and instructions are `tidegate.api.enhancing`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final  # Any: FastAPI's own type for documented responses

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from tidegate.api import enhancing, sse
from tidegate.api.enhancing import Idea, Style
from tidegate.api.lobby import LobbyHere
from tidegate.api.native.envelope import documented, problem_of
from tidegate.api.presence import unless_gone
from tidegate.api.refusals import refusal_of
from tidegate.api.replies import Choir, Stream, checked
from tidegate.api.wishes import Body, Name, Prompt
from tidegate.core.faults import Fault
from tidegate.runtime.asks import AskHandle
from tidegate.runtime.order import SEED_MAX
from tidegate.runtime.settings_tasks import INSTRUCTION_MAX
from tidegate.wire import asks

router = APIRouter(tags=["language models"])


class EnhanceRequest(Body):
    """An idea, and for which image model it is to be put into words."""

    idea: Prompt
    model: Name = Field(default="", description="An image model, for its style; empty: the default.")
    style: Style | None = Field(default=None, strict=False, description="Instead of the model's own style.")
    language_model: Name = Field(default="", description="Who writes; empty: as the settings say.")
    instruction: str = Field(
        default="", max_length=INSTRUCTION_MAX, description="Instead of the one for the style."
    )
    seed: int | None = Field(default=None, ge=0, le=SEED_MAX)
    temperature: float | None = Field(default=None, ge=0, le=100)
    max_tokens: int | None = Field(default=None, ge=16, le=4_096)
    priority: int = Field(default=0, ge=-100, le=100)
    stream: bool = Field(default=False, description="Events text, paused, resumed and done instead.")


class EnhanceOut(BaseModel):
    """The prompt."""

    prompt: str
    idea: str
    style: Style
    language_model: str


_STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": EnhanceOut,
        "content": {sse.MEDIA_TYPE: {}},
        "description": "The prompt; with `stream`, events with a few words each, then `done` with all of it.",
    }
}


@router.post(
    "/api/enhance", response_model=EnhanceOut, responses={**_STREAMED, **documented(404, 409, 429, 503)}
)
async def enhance(wish: EnhanceRequest, request: Request, lobby: LobbyHere) -> EnhanceOut | Response:
    """Make a prompt of a short idea, in the words that the image model's family understands best."""
    idea = Idea(
        text=wish.idea,
        style=wish.style or enhancing.style_for(lobby, wish.model),
        language_model=wish.language_model,
        instruction=wish.instruction,
        seed=wish.seed,
        temperature=wish.temperature,
        tokens_max=wish.max_tokens,
        priority=wish.priority,
    )
    handle = await enhancing.begun(lobby, idea)
    if wish.stream:
        choir = Choir(lobby.gate, [handle])
        return sse.stream_of(Stream(choir, sse.beating(_events(choir, handle, idea))))
    prompt = await unless_gone(request, enhancing.prompt_of(lobby, handle))
    return EnhanceOut(prompt=prompt, idea=idea.text, style=idea.style, language_model=handle.model)


async def _events(choir: Choir, handle: AskHandle, idea: Idea) -> AsyncIterator[bytes]:
    said = ""
    try:
        while not choir.is_over:
            for _, item in await choir.heard():
                match item:
                    case asks.Delta():
                        said += item.text
                        yield sse.event({"text": item.text}, name="text")
                    case asks.Paused():
                        yield sse.event({"reason": item.reason}, name="paused")
                    case asks.Resumed():
                        yield sse.event({}, name="resumed")
                    case asks.Ended():
                        checked(item)
        made = EnhanceOut(prompt=said.strip(), idea=idea.text, style=idea.style, language_model=handle.model)
        yield sse.event(made.model_dump(), name="done")
    except Fault as fault:
        yield sse.event({"error": problem_of(refusal_of(fault)).model_dump()}, name="error")
