"""Weights: one model on its device.

Owns loading and freeing, and the facts that the loaded file tells. The context that computes with it is
`context`; how many layers go to the card is the arbiter's decision.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, Final  # Any: pointers of the bindings

from tidegate_engines import llama

from tidegate.wire.llm_child import Evaluation, LoadMode, OpenLlm
from tidegate.wire.messages import FaultKind
from tidegate.workers.llm.library import Library

_LOAD_MODES: Final = {
    LoadMode.READ: "LLAMA_LOAD_MODE_NONE",
    LoadMode.MMAP: "LLAMA_LOAD_MODE_MMAP",
    LoadMode.DIRECT: "LLAMA_LOAD_MODE_DIRECT_IO",
}


class EngineRefused(Exception):
    """The engine could not do what it was asked; it lives and holds nothing of the attempt."""

    def __init__(self, fault: FaultKind, message: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message


@dataclass(slots=True, kw_only=True)
class Weights:
    """A loaded model. `layers_count` are on the card, counted as llama.cpp counts them."""

    library: Library
    pointer: Any  # llama_model *
    vocab: Any  # const llama_vocab *
    layers_count: int
    vocabulary_count: int
    is_recurrent: bool
    is_pooled: bool
    _ends: list[int] = field(default_factory=list)

    @property
    def ends(self) -> list[int]:
        """All tokens that end an answer; looked for once, as there may be a hundred thousand to look at."""
        if not self._ends:
            self._ends += [token for token in range(self.vocabulary_count) if self.is_end(token)]
        return self._ends

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer."""
        return bool(self.library.api.llama_vocab_is_eog(self.vocab, token))

    def free(self) -> None:
        """Give the weights back; no context of them may be left."""
        self.library.api.llama_model_free(self.pointer)


def load(library: Library, order: OpenLlm, *, layers_count: int) -> Weights:
    """Load the model. Raises `EngineRefused`: out of memory, or a file that is no model."""
    api = library.api
    library.forget()
    params = api.llama_model_default_params()
    params.n_gpu_layers = layers_count
    try:
        # With a card but no layer on it llama.cpp would still compute large batches there.
        devices = llama.device_list([order.device] if layers_count else [])
    except KeyError as error:
        raise EngineRefused(FaultKind.UNSUPPORTED, str(error.args[0])) from error
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    if order.load_mode is not LoadMode.AUTO:
        params.load_mode = getattr(api, _LOAD_MODES[order.load_mode])
    params.use_extra_bufts = repacks(order)
    pointer = api.llama_model_load_from_file(order.path.encode(), params)
    if not pointer:
        fault = FaultKind.OUT_OF_MEMORY if library.was_refused_memory() else FaultKind.INVALID_MODEL
        raise EngineRefused(fault, library.reason())
    vocab = api.llama_model_get_vocab(pointer)
    return Weights(
        library=library,
        pointer=pointer,
        vocab=vocab,
        layers_count=layers_count,
        vocabulary_count=api.llama_vocab_n_tokens(vocab),
        is_recurrent=api.llama_model_is_recurrent(pointer) or api.llama_model_is_hybrid(pointer),
        is_pooled=_is_pooled(api, pointer),
    )


def repacks(order: OpenLlm) -> bool:
    """Whether weights are laid out anew for the CPU: faster, but in RAM of their own and not in the page
    cache, and they round differently from a card's.
    """
    return order.evaluation is Evaluation.THROUGHPUT and not order.device


def _is_pooled(api: Any, pointer: Any) -> bool:
    """Whether the model makes one vector of a whole text itself, for which it needs the text in one batch."""
    value = ctypes.create_string_buffer(64)
    if api.llama_model_meta_val_str(pointer, b"general.architecture", value, len(value)) < 0:
        return False
    key = value.value + b".pooling_type"
    if api.llama_model_meta_val_str(pointer, key, value, len(value)) < 0:
        return False
    return value.value not in (b"", b"0")
