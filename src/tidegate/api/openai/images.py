"""Images in this dialect: from a prompt, or from a picture and a prompt; whole, or streamed.

Owns `/v1/images/generations` and `/v1/images/edits`. A client that hangs up takes its job with it, unless it
gave the job a key and may come back for it. What is streamed is the neighbour `streams`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final  # Any: FastAPI's own type for documented responses

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile

from tidegate.api import enhancing, sse
from tidegate.api.lobby import IdempotencyKey, Lobby, LobbyHere
from tidegate.api.openai import streams
from tidegate.api.openai.envelope import documented
from tidegate.api.openai.schemas import EditRequest, GenerationRequest, ImageData, ImagesAnswer, ImagesRequest
from tidegate.api.presence import Gone, unless_gone
from tidegate.api.wishes import order_of, request_of
from tidegate.core.faults import ClientError
from tidegate.runtime import pictures
from tidegate.runtime.views import JobView

router = APIRouter(tags=["openai"])
_STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": ImagesAnswer,
        "content": {sse.MEDIA_TYPE: {}},
        "description": "The images; with `stream`, events with partial and finished images.",
    }
}
_FORM: Final = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/EditForm"}}},
    }
}


@router.post(
    "/v1/images/generations",
    response_model=ImagesAnswer,
    responses={**_STREAMED, **documented(404, 409, 429, 503)},
)
async def generate_images(
    wish: GenerationRequest, request: Request, lobby: LobbyHere, idempotency_key: IdempotencyKey = ""
) -> ImagesAnswer | Response:
    """Make images from a prompt."""
    return await _made(wish, request, lobby, key=idempotency_key, kind="image_generation")


@router.post(
    "/v1/images/edits",
    response_model=ImagesAnswer,
    responses={**_STREAMED, **documented(404, 409, 429, 503)},
    openapi_extra=_FORM,
)
async def edit_images(
    request: Request, lobby: LobbyHere, idempotency_key: IdempotencyKey = ""
) -> ImagesAnswer | Response:
    """Make images from a picture and a prompt; `strength` says how much of it is redone."""
    wish, picture = await _form(request)
    return await _made(wish, request, lobby, key=idempotency_key, kind="image_edit", picture=picture)


async def _made(
    wish: ImagesRequest, request: Request, lobby: Lobby, *, key: str, kind: str, picture: bytes | None = None
) -> ImagesAnswer | Response:
    defaults = lobby.settings.defaults
    made = await enhancing.for_image(lobby, wish.prompt, model=wish.model, is_wanted=wish.enhance)
    told = [*wish.unknown, made.notice] if made.notice else list(wish.unknown)
    order = await order_of(
        lobby,
        request_of(
            made.prompt,
            wish,
            negative=wish.negative_prompt,
            size=wish.pixels,
            defaults=defaults,
            idea=made.idea,
        ),
        model=wish.model,
        count=wish.n or 1,
        priority=wish.priority,
        idempotency_key=key,
        picture=picture,
    )
    handle = await lobby.gate.submit(order)
    if wish.stream:
        events = streams.events(
            lobby, handle.id, streams.Manner(wish=wish, kind=kind, told=tuple(told)), keeps=bool(key)
        )
        return sse.stream(events)
    try:
        view = await unless_gone(request, lobby.gate.ended(handle.id))
    except Gone:
        if not key:
            await lobby.gate.cancel(handle.id)
        raise
    streams.check_done(view)
    return await _answer(lobby, view, wish, base=str(request.base_url), told=told)


async def _answer(
    lobby: Lobby, view: JobView, wish: ImagesRequest, *, base: str, told: Sequence[str]
) -> ImagesAnswer:
    revised = view.request.prompt if view.request.idea else None
    data = []
    for state in view.images:
        url = b64 = None
        if wish.response_format == "url":
            url = f"{base}api/images/{state.image}"
        else:
            png = await lobby.gate.image_png(state.image)
            file = await lobby.off_loop(pictures.converted, png, to=wish.format, quality=wish.compression)
            b64 = base64.b64encode(file).decode()
        data.append(
            ImageData(b64_json=b64, url=url, revised_prompt=revised, seed=state.seed, image=state.image)
        )
    return ImagesAnswer(
        created=view.ended_at_ms // 1_000,
        data=data,
        output_format=wish.output_format or "png",
        size=f"{view.request.width}x{view.request.height}",
        job=view.id,
        notices=[*told, *view.notices],
    )


async def _form(request: Request) -> tuple[EditRequest, bytes]:
    """The fields and the picture of a form. Raises ClientError and RequestValidationError."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ClientError("A form is wanted here.", remedy="Send multipart/form-data.", code="bad_request")
    try:
        # Leaving the block closes the uploads.
        async with request.form(max_files=4, max_fields=64, max_part_size=1 << 20) as form:
            wish = _fields({name: value for name, value in form.items() if isinstance(value, str)})
            uploads = [value for name, value in form.multi_items() if name in ("image", "image[]")]
            if form.get("mask"):
                raise ClientError(
                    "Masks are not supported yet.",
                    remedy="Leave the mask out; `strength` says how much is redone.",
                    code="mask_not_supported",
                )
            if len(uploads) != 1 or not isinstance(uploads[0], UploadFile):
                raise ClientError(
                    "Exactly one picture is wanted.", remedy="Send one file as `image`.", code="bad_request"
                )
            return wish, await uploads[0].read()
    except FormParserError as error:
        raise ClientError(
            "The form is damaged.", remedy="Send multipart/form-data.", code="bad_request"
        ) from error


def _fields(texts: dict[str, str]) -> EditRequest:
    try:
        return EditRequest.of_form(texts)
    except ValidationError as error:  # said in the same words as for a JSON body
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error
