"""How many bytes a projector for images takes, for the very images that are to be shown to it.

Owns asking: the engine's own code loads the projector on a hollow card and encodes blank images of these
sizes there; what it took is what it will take. Call `attach_hollow_card` first. Neighbour `prediction` asks
about language models, which need no hollow card.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # what the bindings hand out: ctypes structures and pointers

from tidegate_engines.llama.libraries import device_list, free_bytes_of, vision_bindings
from tidegate_engines.llama.messages import log
from tidegate_engines.llama.prediction import UnusableModel, vocabulary

IMAGE_CHUNK = 1


@dataclass(frozen=True, slots=True)
class Projection:
    """A projector's bytes on its card, as charged there, and the tokens of the image that has the most."""

    weights_bytes: int
    compute_bytes: int
    tokens_count: int


def projector_parameters(*, device: str, flash_attention: bool = True, image_tokens_max: int = 0) -> Any:
    """mtmd_context_params on a device of this name, "" for the CPU.

    Without a warm-up, which would reserve for the largest image there can be: buffers are made for the image
    that comes.
    """
    parameters = vision_bindings().mtmd_context_params_default()
    parameters.use_gpu = bool(device)
    if device:
        parameters.device = device_list([device])[0]
    parameters.flash_attn_type = 1 if flash_attention else 0
    parameters.image_max_tokens = image_tokens_max or -1
    parameters.warmup = False
    parameters.print_timings = False
    return parameters


def predict_projector(
    projector: str | Path,
    *,
    model: str | Path,
    card: str,
    sizes_px: Sequence[tuple[int, int]],
    flash_attention: bool = True,
    image_tokens_max: int = 0,
) -> Projection:
    """What the projector and images of these widths and heights, one after the other, take on a hollow card
    of this name.
    """
    parameters = projector_parameters(
        device=card, flash_attention=flash_attention, image_tokens_max=image_tokens_max
    )
    free_bytes = free_bytes_of(card)
    log().forget()
    with vocabulary(model) as text_model, _opened(projector, text_model, parameters) as opened:
        weights_bytes = free_bytes - free_bytes_of(card)
        tokens_count = max(_encode_blank(opened, size_px) for size_px in sizes_px)
        return Projection(weights_bytes, free_bytes - free_bytes_of(card) - weights_bytes, tokens_count)


@contextlib.contextmanager
def _opened(projector: str | Path, text_model: Any, parameters: Any) -> Iterator[Any]:
    vision = vision_bindings()
    opened = vision.mtmd_init_from_file(os.fsencode(projector), text_model, parameters)
    if not opened:
        raise UnusableModel(log().reason() or f"the engine does not take {projector}")
    try:
        yield opened
    finally:
        vision.mtmd_free(opened)


def _encode_blank(opened: Any, size_px: tuple[int, int]) -> int:
    """Encodes an image of this size that shows nothing; the count of its tokens."""
    vision = vision_bindings()
    width, height = size_px
    pixels = (ctypes.c_uint8 * (width * height * 3))()
    bitmap = vision.mtmd_bitmap_init(width, height, pixels)
    chunks = vision.mtmd_input_chunks_init()
    try:
        part = vision.mtmd_input_part(bitmap=bitmap)
        parts = (ctypes.POINTER(vision.mtmd_input_part) * 1)(ctypes.pointer(part))
        if vision.mtmd_tokenize_from_parts(opened, chunks, parts, 1, False):
            raise UnusableModel(log().reason() or "the projector takes no image of this size")
        tokens_count = 0
        for position in range(vision.mtmd_input_chunks_size(chunks)):
            chunk = vision.mtmd_input_chunks_get(chunks, position)
            if vision.mtmd_input_chunk_get_type(chunk) != IMAGE_CHUNK:
                continue
            if vision.mtmd_encode_chunk(opened, chunk):
                raise UnusableModel(log().reason() or "the projector does not encode this image")
            tokens_count += vision.mtmd_input_chunk_get_n_tokens(chunk)
        return tokens_count
    finally:
        vision.mtmd_input_chunks_free(chunks)
        vision.mtmd_bitmap_free(bitmap)
