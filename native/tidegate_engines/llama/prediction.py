"""How many bytes a language model takes on each device, before anything is allocated.

Owns asking: the engine opens the model with `no_alloc`, makes a context from it and tells what each part
would have taken. The bytes are those of the very code that allocates later, so they are exact for the device
asked about. Does not own what a device adds by itself: its context, its pools; that is observed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any  # what the bindings hand out: ctypes structures and pointers

from tidegate_engines.llama.libraries import bindings, device_list, shim
from tidegate_engines.llama.messages import log

ROWS_MAX = 64
ALL_LAYERS = -1
# ggml's numbers for the types a cache can have.
KV_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
LOAD_MODE_NONE = 0


class UnusableModel(RuntimeError):
    """The engine does not take this file, or not with this context; the message is its last complaint."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One allocation: `purpose` is weights, kv or compute; `charged_bytes` is what the device takes."""

    device: str
    buffer_type: str
    purpose: str
    on_card: bool
    size_bytes: int
    granularity_bytes: int

    @property
    def charged_bytes(self) -> int:
        """The size, rounded up to what the device hands out."""
        return -(-self.size_bytes // self.granularity_bytes) * self.granularity_bytes


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes on one device, "" for host memory, as the device charges them."""

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's context and placement: everything that decides its bytes but for the file itself.

    `devices` are those that may hold layers, () for the CPU alone, None for all there are.
    """

    n_ctx: int
    n_gpu_layers: int = ALL_LAYERS
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_outputs_max: int = 0
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: bool = True
    kv_unified: bool = False
    repack: bool = False
    devices: tuple[str, ...] | None = None

    def model_parameters(self) -> Any:
        """llama_model_params of this shape; keep what it points to alive by keeping this answer's `_list`."""
        engine = bindings()
        parameters = engine.llama_model_default_params()
        parameters.n_gpu_layers = self.n_gpu_layers
        parameters.use_extra_bufts = self.repack
        if self.devices is not None:
            parameters._list = device_list(self.devices)
            parameters.devices = ctypes.cast(parameters._list, ctypes.c_void_p)
        return parameters

    def context_parameters(self) -> Any:
        """llama_context_params of this shape."""
        parameters = bindings().llama_context_default_params()
        parameters.n_ctx = self.n_ctx
        parameters.n_batch = self.n_batch
        parameters.n_ubatch = self.n_ubatch
        parameters.n_seq_max = self.n_seq_max
        parameters.n_outputs_max = self.n_outputs_max
        parameters.type_k = KV_TYPES[self.kv_type_k]
        parameters.type_v = KV_TYPES[self.kv_type_v]
        parameters.flash_attn_type = 1 if self.flash_attention else 0
        parameters.kv_unified = self.kv_unified
        # A sliding window needs no cache for what has slid out of it; but its cells are then in another order
        # after a pause, so where each slot has cells of its own (for texts that are the same) it keeps all.
        parameters.swa_full = not self.kv_unified
        return parameters


class _Row(ctypes.Structure):
    """llamaext_row."""

    _fields_ = [
        ("device", ctypes.c_char * 64),
        ("buffer_type", ctypes.c_char * 64),
        ("purpose", ctypes.c_char * 16),
        ("on_card", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("bytes", ctypes.c_uint64),
        ("granularity_bytes", ctypes.c_uint64),
    ]


@dataclass(frozen=True, slots=True)
class Header:
    """What a model's header says. `layers_count` can be on a card: its blocks, and one for the output."""

    architecture: str
    layers_count: int
    tokens_count: int


def header(model: str | Path) -> Header:
    """Reads the header with the engine, its whole vocabulary included."""
    engine = bindings()
    with vocabulary(model) as opened:
        architecture = _told(opened, "general.architecture")
        blocks = _told(opened, f"{architecture}.block_count")
        tokens_count = engine.llama_vocab_n_tokens(engine.llama_model_get_vocab(opened))
    if not blocks.isdecimal():
        raise UnusableModel(f"{model} does not say how many layers it has")
    return Header(architecture, int(blocks) + 1, tokens_count)


def _told(opened: Any, key: str) -> str:
    text = ctypes.create_string_buffer(256)
    bindings().llama_model_meta_val_str(opened, key.encode(), text, len(text))
    return text.value.decode("utf-8", "replace")


def predict(model: str | Path, shape: Shape, known: Header | None = None) -> list[Allocation]:
    """Every allocation the model and its context would make; nothing is allocated on a card.

    Who asks several times hands over the header: reading a large vocabulary takes longer than all the rest.
    A device that opens a context of its own for any use (CUDA) opens it here as well.
    """
    engine = bindings()
    said = log()
    known = known or header(model)
    said.forget()
    parameters = shape.model_parameters()
    parameters.no_alloc = True
    parameters.load_mode = LOAD_MODE_NONE
    parameters.kv_overrides = _without_words(known)
    opened = engine.llama_model_load_from_file(os.fsencode(model), parameters)
    if not opened:
        raise UnusableModel(said.reason() or f"the engine does not take {model}")
    try:
        context = engine.llama_init_from_model(opened, shape.context_parameters())
        if not context:
            raise UnusableModel(said.reason() or "the engine makes no context of this shape")
        try:
            return allocations(context)
        finally:
            engine.llama_free(context)
    finally:
        engine.llama_model_free(opened)


def _without_words(known: Header) -> Any:
    """Overrides that give the engine as many tokens without any text: only their count decides bytes."""
    engine = bindings()
    overrides = (engine.llama_model_kv_override * 3)()
    overrides[0].tag = engine.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[0].key = b"tokenizer.ggml.model"
    overrides[0].value.val_str = b"none"
    overrides[1].tag = engine.LLAMA_KV_OVERRIDE_TYPE_INT
    overrides[1].key = f"{known.architecture}.vocab_size".encode()
    overrides[1].value.val_i64 = known.tokens_count
    return overrides


@contextlib.contextmanager
def vocabulary(model: str | Path) -> Iterator[Any]:
    """The model without weights: its vocabulary and what its header says."""
    engine = bindings()
    log().forget()
    parameters = engine.llama_model_default_params()
    parameters.vocab_only = True
    opened = engine.llama_model_load_from_file(os.fsencode(model), parameters)
    if not opened:
        raise UnusableModel(log().reason() or f"the engine does not take {model}")
    try:
        yield opened
    finally:
        engine.llama_model_free(opened)


def allocations(context: Any) -> list[Allocation]:
    """The allocations behind a context as the engine tells them, be it a real one or one without memory."""
    rows = (_Row * ROWS_MAX)()
    count = _ask()(context, rows, ROWS_MAX)
    if count < 0:
        raise UnusableModel(f"the model has more than {ROWS_MAX} buffers")
    return [
        Allocation(
            device=row.device.decode(),
            buffer_type=row.buffer_type.decode(),
            purpose=row.purpose.decode(),
            on_card=bool(row.on_card),
            size_bytes=row.bytes,
            granularity_bytes=row.granularity_bytes,
        )
        for row in rows[:count]
    ]


def holdings(context: Any) -> list[Holding]:
    """What a context holds on each device, its model's weights included; host memory comes last, as ""."""
    found: dict[str, dict[str, int]] = {}
    for allocation in allocations(context):
        purposes = found.setdefault(allocation.device if allocation.on_card else "", {})
        purposes[allocation.purpose] = purposes.get(allocation.purpose, 0) + allocation.charged_bytes
    return [
        Holding(device, purposes.get("weights", 0), purposes.get("kv", 0), purposes.get("compute", 0))
        for device, purposes in sorted(found.items(), key=lambda item: (item[0] == "", item[0]))
    ]


@cache
def _ask() -> Any:
    function = shim().llamaext_breakdown
    function.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Row), ctypes.c_int32]
    function.restype = ctypes.c_int32
    return function
