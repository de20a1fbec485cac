"""Jobs: create, watch, cancel, and read how it went.

Owns `/api/jobs` and `/api/plan`, which asks what would be done with the same request. Finished images are
served by the neighbour `gallery`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from tidegate.api import enhancing, sse
from tidegate.api.enhancing import Enhanced
from tidegate.api.lobby import GateHere, IdempotencyKey, Lobby, LobbyHere
from tidegate.api.native.envelope import documented
from tidegate.api.native.schemas import ImagesOut, JobOut, JobRequest, JobsOut, StoryOut
from tidegate.api.wishes import order_of, picture_bytes, request_of
from tidegate.runtime import pictures
from tidegate.runtime.report import execution_data
from tidegate.runtime.views import FeedItem, JobOrder, PlanView

WAIT_MAX_MS: Final = 60_000
JSON: Final = "application/json"
# So many jobs are worded in some two milliseconds.
SLICE: Final = 100

router = APIRouter(tags=["jobs"])
JobId = Annotated[str, Path(max_length=100)]


@router.post(
    "/api/jobs",
    status_code=202,
    response_model=JobOut,
    responses={200: {"model": JobOut, "description": "The key was known."}, **documented(404, 409, 429, 503)},
)
async def create_job(
    wish: JobRequest, lobby: LobbyHere, response: Response, idempotency_key: IdempotencyKey = ""
) -> JobOut:
    """Accept a job. Once this answers, a crash of the server does not lose it."""
    made = await enhancing.for_image(lobby, wish.prompt, model=wish.model, is_wanted=wish.enhance)
    handle = await lobby.gate.submit(await _order(lobby, wish, idempotency_key, made))
    response.status_code = 202 if handle.created else 200
    response.headers["Location"] = f"/api/jobs/{handle.id}"
    told = JobOut.of(lobby.gate.job(handle.id))
    return told.model_copy(update={"notices": [made.notice, *told.notices]}) if made.notice else told


@router.get("/api/jobs", response_model=JobsOut, responses=documented())
async def list_jobs(gate: GateHere, count_max: Annotated[int, Query(ge=1, le=1_000)] = 100) -> Response:
    """The jobs known, the youngest first."""
    views, jobs = gate.jobs(count_max=count_max), []
    for first in range(0, len(views), SLICE):
        jobs += [JobOut.of(view) for view in views[first : first + SLICE]]
        await asyncio.sleep(0)  # A thousand of them would keep everybody else waiting for 40 ms.
    # Each was checked when it was made; checked again and copied they would take as long once more.
    return Response(JobsOut.model_construct(jobs=jobs).model_dump_json(), media_type=JSON)


@router.get("/api/jobs/{job}", responses=documented(404))
async def get_job(
    job: JobId, gate: GateHere, wait_ms: Annotated[int, Query(ge=0, le=WAIT_MAX_MS)] = 0
) -> JobOut:
    """A job as it stands; with `wait_ms`, as soon as it has ended."""
    view = gate.job(job)
    if wait_ms and not view.is_ended:
        try:
            async with asyncio.timeout(wait_ms / 1_000):
                await gate.ended(job)
        except TimeoutError:  # not ended: it is told as it stands
            pass
    return JobOut.of(gate.job(job))


@router.post("/api/jobs/{job}/cancel", responses=documented(404))
async def cancel_job(job: JobId, gate: GateHere) -> JobOut:
    """Nobody wants it any more; what has ended stays ended."""
    return JobOut.of(await gate.cancel(job))


@router.get("/api/jobs/{job}/result", responses=documented(404))
async def get_result(job: JobId, gate: GateHere) -> ImagesOut:
    """The images of a job that are done, in the order of their seeds."""
    return ImagesOut(images=[await gate.image(image) for image in gate.result(job)])


@router.get("/api/jobs/{job}/story", responses=documented(404))
async def get_story(job: JobId, gate: GateHere) -> StoryOut:
    """What happened to a job, line by line."""
    return StoryOut(job=job, lines=list(gate.story(job)))


@router.get(
    "/api/jobs/{job}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {sse.MEDIA_TYPE: {}}, "description": "Events."}, **documented(404)},
)
async def watch_job(job: JobId, lobby: LobbyHere) -> StreamingResponse:
    """Progress, previews and notices of one job from now on; the last event is `end`."""
    lobby.gate.job(job)  # refuses an unknown one before the stream begins
    # Heard from here on, before the client is told that the stream is open.
    return sse.stream(_feed(lobby, lobby.gate.feed(job)))


@router.post("/api/plan", responses=documented(404, 409, 503))
async def plan(wish: JobRequest, lobby: LobbyHere) -> PlanView:
    """What would be done with a job now, who would make room, and what a smaller model would change."""
    return await lobby.gate.plan(await _order(lobby, wish, "", Enhanced(prompt=wish.prompt)))


async def _order(lobby: Lobby, wish: JobRequest, idempotency_key: str, made: Enhanced) -> JobOrder:
    defaults = lobby.settings.defaults
    size = (wish.width or defaults.width, wish.height or defaults.height)
    return await order_of(
        lobby,
        request_of(made.prompt, wish, negative=wish.negative, size=size, defaults=defaults, idea=made.idea),
        model=wish.model,
        count=wish.count,
        priority=wish.priority,
        idempotency_key=idempotency_key,
        picture=picture_bytes(wish.picture) if wish.picture else None,
    )


async def _feed(lobby: Lobby, items: AsyncIterator[FeedItem]) -> AsyncIterator[bytes]:
    async with sse.heard(items) as feed:
        async for item in feed:
            data: dict[str, object] = {
                "job": item.job,
                "index": item.index,
                "stage": item.stage,
                "execution": execution_data(item.execution) if item.execution else None,
                "step": item.step,
                "steps_count": item.steps_count,
                "text": item.text,
                "image": item.image,
                "preview": await _preview(lobby, item),
            }
            yield sse.event(data, name=item.kind)
            if item.kind == "end":
                return


async def _preview(lobby: Lobby, item: FeedItem) -> str:
    """A small PNG as base64, one pixel per latent cell; empty where there is none."""
    if not item.preview:
        return ""
    shape = (item.preview_width, item.preview_height)
    png = await lobby.off_loop(pictures.enlarged, item.preview, shape, shape, to=pictures.OutputFormat.PNG)
    return base64.b64encode(png).decode()
