"""PNG files: pixels with the recipe in words, where other programs look for it.

Owns the `parameters` text chunk as AUTOMATIC1111's web UI writes and reads it, and writing an image so that
it is there whole or not at all. Where pixels come from is not known here.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import json
import os
from pathlib import Path

from PIL import Image, PngImagePlugin

from tidegate.core.faults import ClientError
from tidegate.wire import artifacts
from tidegate.wire.messages import ImageRequest

# What that web UI calls the samplers and schedulers of this engine; programs that import its images match
# these names. A name that is not in the table is written as the engine has it.
_SAMPLER_TITLES = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm++2s_a": "DPM++ 2S a",
    "dpm++2m": "DPM++ 2M",
    "lcm": "LCM",
    "ddim_trailing": "DDIM",
}
_SCHEDULER_TITLES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "beta": "Beta",
    "ays": "Align Your Steps",
}


def parameters(request: ImageRequest, *, model: str, is_from_image: bool) -> str:
    """Word a request the way that other programs read it back."""
    lines = [request.prompt]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    fields = {"Steps": str(request.steps)}
    if request.sampler:
        fields["Sampler"] = _SAMPLER_TITLES.get(request.sampler, request.sampler)
    if request.scheduler:
        fields["Schedule type"] = _SCHEDULER_TITLES.get(request.scheduler, request.scheduler)
    fields |= {"CFG scale": f"{request.cfg:g}", "Seed": str(request.seed)}
    fields |= {"Size": f"{request.width}x{request.height}", "Model": model}
    if is_from_image:
        fields["Denoising strength"] = f"{request.strength:g}"
    if request.clip_skip > 0:
        fields["Clip skip"] = str(request.clip_skip)
    if request.idea:
        fields["Idea"] = request.idea
    fields["Version"] = f"tidegate {_version()}"
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items()))
    return "\n".join(lines)


@functools.cache  # It is read from a file, and does not change while we run.
def _version() -> str:
    try:
        return importlib.metadata.version("tidegate")
    except importlib.metadata.PackageNotFoundError:  # run from the sources without an installation
        return "from source"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def encode(pixels: bytes, *, width: int, height: int, text: str) -> bytes:
    """The bytes of a PNG file of `height` rows of `width` RGB pixels."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def write(path: Path, data: bytes) -> None:
    """Put the file in place. Raises ClientError when the place does not take it."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a pipe or a device is written to, never replaced
        else:
            artifacts.write_atomically(path, data)
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error


def check_writable(path: Path) -> None:
    """Say before the work begins that its result will have no place. Creates nothing."""
    try:
        _check_place(path)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise unwritable(path, error.strerror or str(error)) from error


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise unwritable(path, "it is a folder")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise unwritable(path, "permission denied")
        return
    if not path.parent.is_dir():
        raise unwritable(path, "its folder does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise unwritable(path, "permission denied")


def unwritable(path: Path, why: str) -> ClientError:
    """The one sentence about a place that cannot be written."""
    return ClientError(
        f"The image cannot be written to {path}: {why[:1].lower()}{why[1:]}.",
        remedy="Choose another place with -o.",
        code="output_unwritable",
    )
