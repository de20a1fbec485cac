"""Vision: pictures of a prompt as places in the context, through mtmd's low-level functions.

Owns the projector's context: it is opened for the first picture that needs it and closed again when no stream
has a picture to compute, because it is the part that is missed least. The packaged handlers are not used:
they clear the cache on every call and mix up places and positions under M-RoPE.

Weights that do not fit end the process in this engine, so room is looked for first; without it, pictures are
computed by the CPU. Vectors of a picture are kept, bounded, for when the same picture comes again.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final  # Any: pointers of the bindings

import numpy as np
from tidegate_engines import llama

from tidegate.wire.llm_child import OpenLlm
from tidegate.wire.llm_link import Image
from tidegate.wire.messages import FaultKind
from tidegate.workers.llm import states
from tidegate.workers.llm.context import Context
from tidegate.workers.llm.library import Library
from tidegate.workers.llm.streams import Piece
from tidegate.workers.llm.weights import EngineRefused, Weights

_KEPT_BYTES_MAX: Final = 64 << 20
# Weights and as much again for computing: more than any projector that was measured took.
_ROOM_FACTOR: Final = 2
_TEXT_CHUNK: Final = 0

Vectors = np.ndarray[tuple[int], np.dtype[np.float32]]


class Eyes:
    """The projector of one model, as long as it is wanted."""

    def __init__(self, lib: Library, order: OpenLlm) -> None:
        self._lib, self._order = lib, order
        self._api: Any = llama.vision_bindings() if order.projector_path else None
        self._context: Any = None
        self._kept: OrderedDict[str, Vectors] = OrderedDict()

    @property
    def is_open(self) -> bool:
        """Whether the projector holds anything."""
        return self._context is not None

    def close(self) -> None:
        """Give the projector back; always before its text model."""
        if self._context is not None:
            self._api.mtmd_free(self._context)
            self._context = None

    def pieces_of(self, weights: Weights, image: Image, descriptor: int) -> list[Piece]:
        """A picture as pieces of a prompt: its places, and the tokens that this model wants around them."""
        self._open(weights)
        pixels = states.mapped(descriptor)
        if len(pixels) != image.width * image.height * 3:
            raise EngineRefused(FaultKind.INVALID_REQUEST, "a picture whose pixels do not fit its size")
        api = self._api
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = api.mtmd_bitmap_init(image.width, image.height, data)
        part = api.mtmd_input_part()
        part.text, part.bitmap = None, bitmap
        parts = (ctypes.POINTER(api.mtmd_input_part) * 1)(ctypes.pointer(part))
        chunks = api.mtmd_input_chunks_init()
        try:
            code = api.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False)
            if code:
                raise EngineRefused(
                    FaultKind.INVALID_REQUEST, f"the picture cannot be used: {self._reason()}"
                )
            count = api.mtmd_input_chunks_size(chunks)
            return [self._piece(image, n, api.mtmd_input_chunks_get(chunks, n)) for n in range(count)]
        finally:
            api.mtmd_input_chunks_free(chunks)
            api.mtmd_bitmap_free(bitmap)

    def _piece(self, image: Image, number: int, chunk: Any) -> Piece:
        api = self._api
        if api.mtmd_input_chunk_get_type(chunk) == _TEXT_CHUNK:
            count = ctypes.c_size_t()
            tokens = api.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
            return Piece(ids=tuple(tokens[: count.value]))
        return Piece(
            key=f"{image.key}/{number}",
            items_count=api.mtmd_input_chunk_get_n_tokens(chunk),
            positions_count=api.mtmd_input_chunk_get_n_pos(chunk),
            chunk=api.mtmd_input_chunk_copy(chunk),
        )

    def compute(
        self, weights: Weights, context: Context, piece: Piece, *, sequence: int, position: int
    ) -> None:
        """Put a picture into a sequence at this position. Raises `EngineRefused`."""
        self._open(weights)
        vectors = self._vectors(piece, weights)
        after = ctypes.c_int32()
        code = self._api.mtmd_helper_decode_image_chunk(
            self._context,
            context.pointer,
            piece.chunk,
            vectors.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            position,
            sequence,
            context.batch_max,
            ctypes.byref(after),
            self._api.mtmd_helper_post_decode_callback(0),
            None,
        )
        if code:
            refused = FaultKind.OUT_OF_MEMORY if self._lib.was_refused_memory() else FaultKind.ENGINE
            raise EngineRefused(refused, f"a picture could not be computed: {self._reason()}")
        assert after.value == position + piece.positions_count, "a picture took other positions than foreseen"

    def _vectors(self, piece: Piece, weights: Weights) -> Vectors:
        if piece.key in self._kept:
            self._kept.move_to_end(piece.key)
            return self._kept[piece.key]
        self._lib.forget()
        if self._api.mtmd_encode_chunk(self._context, piece.chunk):
            # After a failed encoding the next one on the same context would end the process.
            self.close()
            refused = FaultKind.OUT_OF_MEMORY if self._lib.was_refused_memory() else FaultKind.ENGINE
            raise EngineRefused(refused, f"a picture could not be encoded: {self._reason()}")
        count = piece.items_count * self._lib.api.llama_model_n_embd_inp(weights.pointer)
        pointer = self._api.mtmd_get_output_embd(self._context)
        vectors: Vectors = np.ctypeslib.as_array(pointer, shape=(count,)).copy()
        self._kept[piece.key] = vectors
        while sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES_MAX and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return vectors

    def _open(self, weights: Weights) -> None:
        if self._context is not None:
            return
        if self._api is None:
            raise EngineRefused(FaultKind.UNSUPPORTED, "this model has no projector (mmproj)")
        self._lib.forget()
        params = self._api.mtmd_context_params_default()
        params.use_gpu = self._has_room()
        if params.use_gpu:
            params.device = llama.device_list([self._order.device])[0]
        if self._order.threads_count:
            params.n_threads = self._order.threads_count
        params.print_timings, params.warmup = False, False
        params.flash_attn_type = int(self._order.flash_attention)
        if self._order.image_tokens_max:
            params.image_max_tokens = self._order.image_tokens_max
        path = self._order.projector_path.encode()
        self._context = self._api.mtmd_init_from_file(path, weights.pointer, params) or None
        if self._context is None:
            raise EngineRefused(FaultKind.INVALID_MODEL, f"the projector cannot be used: {self._reason()}")

    def _has_room(self) -> bool:
        if not self._order.device:
            return False
        size_bytes = Path(self._order.projector_path).stat().st_size
        return llama.free_bytes_of(self._order.device) >= _ROOM_FACTOR * size_bytes

    def forget(self, piece: Piece) -> None:
        """Give back what a piece holds."""
        if piece.chunk is not None:
            self._api.mtmd_input_chunk_free(piece.chunk)

    def _reason(self) -> str:
        return self._lib.reason()
