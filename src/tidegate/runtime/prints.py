"""Prints: from the pixels that a worker left to a picture with everything that is known about it.

Owns the judgement whether pixels are a picture, and the recipe that goes with one. The file's format is
`png`'s; where pictures are kept is the `gallery`'s part.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import msgspec

from tidegate.core.image.failure import Failure
from tidegate.runtime import png
from tidegate.runtime.assignment import Assignment, Spoilt
from tidegate.runtime.report import execution_data
from tidegate.runtime.views import ImageView


def printed(
    assignment: Assignment, *, exchange: int, sha256: str, at_ms: int, made_with: Mapping[str, str]
) -> tuple[ImageView, bytes, bool]:
    """The picture, its PNG file, and whether it is of one colour. Raises `Spoilt`. Blocks."""
    frame, request = assignment.frame, assignment.frame.request
    pixels = os.pread(exchange, request.width * request.height * 3, 0)
    if hashlib.sha256(pixels).hexdigest() != sha256:
        raise Spoilt(Failure.ENGINE, "the pixels that arrived are not those that were sent")
    facts = assignment.model.opened
    named = msgspec.structs.replace(request, sampler=request.sampler or facts.default_sampler)
    text = png.parameters(
        named, model=assignment.model.name, is_from_image=bool(assignment.entry.ticket.init_sha256)
    )
    data = png.encode(pixels, width=request.width, height=request.height, text=text)
    view = ImageView(
        id=frame.name,
        job=frame.job,
        index=frame.index,
        model=assignment.model.name,
        seed=request.seed,
        width=request.width,
        height=request.height,
        created_at_ms=at_ms,
        size_bytes=len(data),
        pixels_sha256=sha256,
        parameters=text,
        recipe=_recipe(assignment, made_with),
    )
    return view, data, pixels == pixels[:3] * (len(pixels) // 3)


def _recipe(assignment: Assignment, made_with: Mapping[str, str]) -> dict[str, object]:
    model = assignment.model
    stages = {stage.value: execution_data(how) for stage, how in assignment.frame.executions.items()}
    return {
        "model": dict(model.fingerprints),
        **made_with,
        "flash_attention": model.flash_attention,
        "direct_convolution": model.direct_convolution,
        "threads": model.threads,
        "request": msgspec.to_builtins(assignment.frame.request),
        "stages": stages,
    }
