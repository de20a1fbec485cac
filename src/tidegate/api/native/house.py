"""The house as it stands: memory, models, what is warm, and the events of all of it.

Owns `/api/vram`, `/api/models`, `/api/residency`, `/api/events` and `/api/reload`. Jobs have their own
neighbour `jobs`, other applications `guests`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from tidegate.api import sse
from tidegate.api.lobby import GateHere, LobbyHere
from tidegate.api.native.envelope import documented
from tidegate.runtime.views import EventItem, ModelView, ReloadView, ResidencyView, VramView

router = APIRouter(tags=["house"])
ModelName = Annotated[str, Path(max_length=200)]


class ModelsOut(BaseModel):
    """The registry; `refused` says why a file cannot be used."""

    models: list[ModelView]


@router.get("/api/vram", responses=documented())
async def get_vram(gate: GateHere) -> VramView:
    """Who holds what, on every card and in RAM, predicted and observed."""
    return gate.vram()


@router.get("/api/models", responses=documented())
async def list_models(gate: GateHere) -> ModelsOut:
    """The models of the registry and what of them is loaded."""
    return ModelsOut(models=list(gate.models()))


@router.post("/api/models/{model}/load", responses=documented(404, 409, 503))
async def load_model(model: ModelName, gate: GateHere) -> ModelView:
    """Bring a model's files into the page cache, so that its next image starts at once."""
    return await gate.load(model)


@router.post("/api/models/{model}/unload", responses=documented(404, 409, 503))
async def unload_model(model: ModelName, gate: GateHere) -> ModelView:
    """Give back what a model holds and nobody is using."""
    return await gate.unload(model)


@router.get("/api/residency", responses=documented())
async def get_residency(gate: GateHere) -> ResidencyView:
    """What is warm here and how long the queue is, for whoever chooses among hosts."""
    return gate.residency()


@router.post("/api/reload", responses=documented(429, 503))
async def reload_settings(lobby: LobbyHere) -> ReloadView:
    """Read settings and registry again without losing a job."""
    return await lobby.reload()


@router.get(
    "/api/events",
    response_class=StreamingResponse,
    responses={200: {"content": {sse.MEDIA_TYPE: {}}, "description": "Events."}, **documented()},
)
async def watch_events(
    gate: GateHere,
    after: Annotated[int, Query(ge=-1, description="Replay from the event after this one.")] = -1,
    kinds: Annotated[str, Query(max_length=200, description="Only these, with commas between.")] = "",
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=-1)] = None,
) -> StreamingResponse:
    """Everything that happens: progress, preview, notice, vram, job, level, chat, and lost.

    A browser that reconnects says `Last-Event-ID` by itself and gets what it missed; `lost` tells
    how much is beyond them.
    """
    wanted = frozenset(kind.strip() for kind in kinds.split(",") if kind.strip())
    # Heard from here on, before the client is told that the stream is open.
    items = gate.events(after=after if last_event_id is None else last_event_id)
    return sse.stream(_events(items, wanted))


async def _events(items: AsyncIterator[EventItem], wanted: frozenset[str]) -> AsyncIterator[bytes]:
    async with sse.heard(items) as events:
        async for item in events:
            if not wanted or item.kind in wanted or item.kind == "lost":
                yield sse.event(item.data, name=item.kind, number=item.id)
