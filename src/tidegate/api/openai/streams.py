"""Streams of images in this dialect: partial images while they are made, and the finished ones.

Owns which previews become partial images, and what is said when a job fails in mid-stream. The events' fields
are in `schemas`, how events go over the wire in `tidegate.api.sse`.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tidegate.api import sse
from tidegate.api.lobby import Lobby
from tidegate.api.openai.envelope import problem
from tidegate.api.openai.schemas import ImagesRequest, StreamedImage, Usage
from tidegate.api.refusals import refusal_of
from tidegate.core.faults import ClientError, Fault, fault_by_code
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Stage
from tidegate.runtime import pictures
from tidegate.runtime.views import FeedItem, JobView


def check_done(view: JobView) -> None:
    """Raise the fault by which a job ended, if it did not end well."""
    match view.phase:
        case JobPhase.FAILED:
            story = f"Its story is at /api/jobs/{view.id}/story."
            raise fault_by_code(view.code, view.message, remedy=story, retry_after_ms=view.retry_after_ms)
        case JobPhase.CANCELLED:
            raise ClientError("The job was cancelled.", code="conflict")
        case _:
            assert view.is_ended, f"{view.id} was waited for and stands in {view.phase}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a job's images are streamed: as was wished, in events of this kind, with what is to be told."""

    wish: ImagesRequest
    kind: str
    told: tuple[str, ...] = ()


async def events(lobby: Lobby, job: str, manner: Manner, *, keeps: bool) -> AsyncIterator[bytes]:
    """The events of one job; when the client goes away first, the job goes too unless `keeps`."""
    finished: set[int] = set()
    try:
        async with sse.heard(_while_made(lobby, job, manner, finished=finished)) as made:
            async for said in made:
                yield said
        view = lobby.gate.job(job)
        check_done(view)
        # Those that were done before anybody listened.
        for state in view.images:
            if state.index not in finished:
                yield await _completed(lobby, job, state.index, manner)
    except Fault as fault:
        yield sse.event({"type": "error", "error": problem(refusal_of(fault))}, name="error")
    finally:
        if not keeps and not lobby.gate.job(job).is_ended:
            await lobby.gate.cancel(job)


async def _while_made(lobby: Lobby, job: str, manner: Manner, *, finished: set[int]) -> AsyncIterator[bytes]:
    sent: dict[int, int] = {}
    if lobby.gate.job(job).is_ended:
        return
    async with sse.heard(lobby.gate.feed(job)) as feed:
        async for item in feed:
            if item.kind == "image":
                finished.add(item.index)
                yield await _completed(lobby, job, item.index, manner)
            elif _is_wanted(item, manner.wish, sent.get(item.index, 0)):
                number = sent.get(item.index, 0)
                sent[item.index] = number + 1
                yield await _partial(lobby, job, item, manner, number=number)
            elif item.kind == "end":
                return


def _is_wanted(item: FeedItem, wish: ImagesRequest, sent_count: int) -> bool:
    """Partial images are spread evenly over the steps: of 2, one after a third and one after two thirds."""
    wanted = wish.partial_images or 0
    if item.stage is not Stage.DENOISE or not item.preview or sent_count >= wanted:
        return False
    return item.step * (wanted + 1) >= item.steps_count * (sent_count + 1)


async def _partial(lobby: Lobby, job: str, item: FeedItem, manner: Manner, *, number: int) -> bytes:
    wish, view = manner.wish, lobby.gate.job(job)
    size = (view.request.width, view.request.height)
    shape = (item.preview_width, item.preview_height)
    file = await lobby.off_loop(pictures.enlarged, item.preview, shape, size, to=wish.format)
    name = f"{manner.kind}.partial_image"
    said = _image(view, file, wish=wish, name=name)
    return sse.event(said.event(partial_image_index=number, image_index=item.index), name=name)


async def _completed(lobby: Lobby, job: str, index: int, manner: Manner) -> bytes:
    wish, view = manner.wish, lobby.gate.job(job)
    state = view.images[index]
    png = await lobby.gate.image_png(state.image)
    file = await lobby.off_loop(pictures.converted, png, to=wish.format, quality=wish.compression)
    name = f"{manner.kind}.completed"
    said = _image(view, file, wish=wish, name=name)
    further: dict[str, object] = {
        "usage": Usage().model_dump(),
        "notices": [*manner.told, *view.notices],
        "job": job,
    }
    return sse.event(said.event(seed=state.seed, image=state.image, **further), name=name)


def _image(view: JobView, file: bytes, *, wish: ImagesRequest, name: str) -> StreamedImage:
    return StreamedImage(
        type=name,
        b64_json=base64.b64encode(file).decode(),
        created_at=view.submitted_at_ms // 1_000,
        output_format=wish.output_format or "png",
        size=f"{view.request.width}x{view.request.height}",
    )
