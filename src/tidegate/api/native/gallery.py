"""The gallery: finished images, with the recipe of each.

Owns `/api/images`. Ids are made by the runtime and never file names.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query, Response

from tidegate.api.lobby import GateHere
from tidegate.api.native.envelope import documented
from tidegate.api.native.schemas import Deleted, ImagesOut
from tidegate.runtime.views import ImageView

router = APIRouter(tags=["images"])
ImageId = Annotated[str, Path(max_length=100)]


@router.get("/api/images", response_model=ImagesOut, responses=documented(404))
async def list_images(
    gate: GateHere,
    count_max: Annotated[int, Query(ge=1, le=1_000)] = 100,
    before: Annotated[str, Query(max_length=100, description="Only images older than this one.")] = "",
) -> Response:
    """Finished images, the youngest first."""
    # A thousand of them, checked field by field, would keep everybody else waiting for tens of milliseconds.
    images = await gate.images(count_max=count_max, before=before)
    return Response(msgspec.json.encode({"images": images}), media_type="application/json")


@router.get(
    "/api/images/{image}",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "The file."}, **documented(404)},
)
async def get_image(image: ImageId, gate: GateHere) -> Response:
    """The PNG file, which carries its recipe."""
    png = await gate.image_png(image)
    # An id stands for these pixels for ever.
    return Response(
        png, media_type="image/png", headers={"Cache-Control": "private, immutable, max-age=86400"}
    )


@router.get("/api/images/{image}/metadata", responses=documented(404))
async def get_metadata(image: ImageId, gate: GateHere) -> ImageView:
    """How an image was made."""
    return await gate.image(image)


@router.delete("/api/images/{image}", responses=documented(404))
async def delete_image(image: ImageId, gate: GateHere) -> Deleted:
    """Remove an image from gallery and disk."""
    await gate.delete_image(image)
    return Deleted(id=image)
