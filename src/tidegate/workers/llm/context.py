"""The context: KV cache and compute buffers of a loaded model, and what is done with its sequences.

Owns making and freeing it, batches, trimming and copying sequences, and their states. It knows sequences by
number and tokens by position; who they belong to is known to `slots`, what is computed next to `loop`.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple  # Any: pointers of the bindings

import numpy as np
from tidegate_engines import llama

from tidegate.wire.llm_child import Evaluation, OpenLlm
from tidegate.wire.messages import FaultKind
from tidegate.workers.llm import states
from tidegate.workers.llm.library import Library
from tidegate.workers.llm.weights import EngineRefused, Weights, repacks

# Rows of one call that may have logits: a token of each slot, and short pieces of texts to embed. Fewer than
# the whole batch, because the buffer for them is this many times the vocabulary.
OUTPUTS_MIN: Final = 32
_DECODE_NO_ROOM: Final = 1
_DECODE_REFUSED_MEMORY: Final = -2


class Row(NamedTuple):
    """One token of a batch. With `is_output` its logits are wanted."""

    token: int
    position: int
    sequence: int
    is_output: bool


class Context:
    """A live llama_context and one reusable batch."""

    def __init__(self, lib: Library, weights: Weights, order: OpenLlm) -> None:
        """Make it. Raises `EngineRefused` when memory is refused."""
        self._lib, self._api = lib, lib.api
        self.slots_count = order.slots_count
        self.shares_cells = shares_cells(self._api, weights.pointer, order.evaluation)
        params = _params(shape_of(order, weights), order)
        lib.forget()
        self.pointer = self._api.llama_init_from_model(weights.pointer, params)
        if not self.pointer:
            fault = FaultKind.OUT_OF_MEMORY if lib.was_refused_memory() else FaultKind.ENGINE
            raise EngineRefused(fault, lib.reason())
        none = self._api.LLAMA_POOLING_TYPE_NONE
        self.pools = self._api.llama_pooling_type(self.pointer) != none
        self.batch_max = int(self._api.llama_n_batch(self.pointer))
        self.outputs_max = int(params.n_outputs_max) or self.batch_max
        self.memory = self._api.llama_get_memory(self.pointer)
        self._window_count = int(self._api.llama_model_n_swa(weights.pointer))
        self.embedding_count = int(self._api.llama_model_n_embd_out(weights.pointer))
        self._batch = _Batch(self._api, self.batch_max)
        self._desk = states.Desk()

    def free(self) -> None:
        """Give KV cache and compute buffers back."""
        self._batch.free()
        self._api.llama_free(self.pointer)
        self.pointer = None

    # ------------------------------------------------------------ computing

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute one batch. Raises `EngineRefused`; the rows are then not in the cache."""
        self._batch.fill(rows)
        self._lib.forget()
        code = self._api.llama_decode(self.pointer, self._batch.batch)
        if code:
            raise self._refusal(code)

    def _refusal(self, code: int) -> EngineRefused:
        if code == _DECODE_REFUSED_MEMORY or self._lib.was_refused_memory():
            return EngineRefused(FaultKind.OUT_OF_MEMORY, "memory was refused while computing")
        if code == _DECODE_NO_ROOM:
            return EngineRefused(FaultKind.ENGINE, "the KV cache has no room for this batch")
        return EngineRefused(FaultKind.ENGINE, f"llama_decode answered {code}: {self._lib.reason()}")

    def warm_up(self, tokens_count: int, token: int) -> None:
        """Compute a batch of this size and forget it, so that every pool has grown as far as it will."""
        rows = [Row(token, n, 0, n == tokens_count - 1) for n in range(min(tokens_count, self.batch_max))]
        self.decode(rows)
        self._api.llama_synchronize(self.pointer)
        self.clear()

    def has_sense(self, row: int, token: int) -> bool:
        """Whether the logit of a token of this row of the last batch is a number. One NaN on the way through
        the layers makes all of them NaN, so looking at the token that was chosen is enough.
        """
        return math.isfinite(self._api.llama_get_logits_ith(self.pointer, row)[token])

    def logits(self, row: int, vocabulary_count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The logits of a row of the last batch; a view that the next batch overwrites."""
        found: np.ndarray[tuple[int], np.dtype[np.float32]] = np.ctypeslib.as_array(
            self._api.llama_get_logits_ith(self.pointer, row), shape=(vocabulary_count,)
        )
        return found

    def embed(self, rows: Sequence[Row]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Compute a batch for the vectors of its rows, or for the one of its sequence where it is pooled."""
        self._api.llama_set_embeddings(self.pointer, True)
        try:
            self.decode(rows)
            count = self.embedding_count
            if self.pools:
                views = [self._api.llama_get_embeddings_seq(self.pointer, rows[0].sequence)]
            else:
                views = [self._api.llama_get_embeddings_ith(self.pointer, n) for n in range(len(rows))]
            return np.stack([np.ctypeslib.as_array(view, shape=(count,)) for view in views])
        finally:
            self._api.llama_set_embeddings(self.pointer, False)

    # ------------------------------------------------------------ sequences

    def clear(self) -> None:
        """Forget every sequence."""
        if self.memory:
            self._api.llama_memory_clear(self.memory, False)

    def trim(self, sequence: int, position: int) -> bool:
        """Forget a sequence from this position on. False when the model's memory cannot forget a part; then
        nothing of it is left.
        """
        if not self.memory:
            return position == 0
        removed = self._api.llama_memory_seq_rm(self.memory, sequence, position, -1)
        if removed and self._is_whole(sequence, position):
            return True
        self._api.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        return position == 0

    def _is_whole(self, sequence: int, position: int) -> bool:
        """Whether all is there that the next position looks at: a sliding window forgets what lies before it,
        and after a cut it would have to look further back.
        """
        if not self._window_count or position == 0:
            return True
        first = self._api.llama_memory_seq_pos_min(self.memory, sequence)
        return bool(0 <= first <= max(0, position - self._window_count))

    def copy(self, source: int, target: int) -> None:
        """Have `target`, which is empty, hold what `source` holds; without a copy where cells are shared."""
        self._api.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def shift(self, sequence: int, kept: int, shifted: int, end: int) -> bool:
        """Forget `shifted` positions after `kept` and move what follows, up to `end`; False if impossible."""
        if not self.memory or not self._api.llama_memory_can_shift(self.memory):
            return False
        if not self._api.llama_memory_seq_rm(self.memory, sequence, kept, kept + shifted):
            return False
        self._api.llama_memory_seq_add(self.memory, sequence, kept + shifted, end, -shifted)
        return True

    # ------------------------------------------------------------ states

    def state_bytes(self, sequence: int) -> int:
        """How large the state of a sequence is at most."""
        return int(self._api.llama_state_seq_get_size_ext(self.pointer, sequence, 0))

    def save(self, sequence: int) -> tuple[int, int, str]:
        """The state of a sequence: a sealed memory file, its bytes, their digest."""

        def fill(view: states.Bytes) -> int:
            pointer = view.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            return int(self._api.llama_state_seq_get_data_ext(self.pointer, pointer, len(view), sequence, 0))

        return self._desk.write(self.state_bytes(sequence), fill)

    def restore(self, sequence: int, data: states.Bytes) -> None:
        """Put a state into an empty sequence. Raises `BrokenState`; nothing is left in the sequence then."""
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        taken = self._api.llama_state_seq_set_data_ext(self.pointer, pointer, len(data), sequence, 0)
        if taken != len(data):
            self.trim(sequence, 0)
            raise states.BrokenState(f"llama.cpp took {taken} of {len(data)} bytes of a saved state")


class _Batch:
    """The arrays of one llama_batch, filled with one assignment each, however many rows there are.

    Not through NumPy: beside weights that push everything out of the caches its code is cold at every token.
    """

    def __init__(self, api: Any, rows_max: int) -> None:
        self._api = api
        self.batch = api.llama_batch_init(rows_max, 0, 1)
        words, letters = ctypes.c_int32 * rows_max, ctypes.c_int8 * rows_max
        self._tokens = words.from_address(ctypes.addressof(self.batch.token.contents))
        self._positions = words.from_address(ctypes.addressof(self.batch.pos.contents))
        self._outputs = letters.from_address(ctypes.addressof(self.batch.logits.contents))
        words.from_address(ctypes.addressof(self.batch.n_seq_id.contents))[:] = [1] * rows_max
        # llama.cpp allocates one small array for each row; ours lie side by side and replace them.
        self._sequences = words()
        base = ctypes.addressof(self._sequences)
        self._own = [ctypes.addressof(self.batch.seq_id[n].contents) for n in range(rows_max)]
        self._point(base + 4 * n for n in range(rows_max))

    def _point(self, addresses: Any) -> None:
        kind = type(self.batch.seq_id[0])
        for n, address in enumerate(addresses):
            self.batch.seq_id[n] = ctypes.cast(address, kind)

    def fill(self, rows: Sequence[Row]) -> None:
        count = len(rows)
        tokens, positions, sequences, outputs = zip(*rows, strict=True)
        self._tokens[:count] = list(tokens)
        self._positions[:count] = list(positions)
        self._sequences[:count] = list(sequences)
        self._outputs[:count] = list(outputs)
        self.batch.n_tokens = count

    def free(self) -> None:
        self._point(self._own)
        self._api.llama_batch_free(self.batch)


def shares_cells(api: Any, model: Any, evaluation: Evaluation) -> bool:
    """Whether all slots share one pool of cells, or each has its own; the prediction is asked with the same.

    In a shared pool every token looks past the cells of all conversations, idle ones too, and was seen to
    take a fifth longer. A sliding window with cells of its own for each slot keeps all that slid out of it,
    and a memory that cannot be cut takes no thrown-away rows: there sharing is the smaller price.
    """
    if evaluation is Evaluation.REPRODUCIBLE:
        return False
    is_cut_nowhere = api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model)
    return bool(is_cut_nowhere or api.llama_model_n_swa(model))


def shape_of(order: OpenLlm, weights: Weights) -> llama.Shape:
    """Everything that decides the bytes of weights and context; the prediction is asked with the same.

    Raises `EngineRefused` for a KV type that there is not.
    """
    for name in (order.kv_type_k, order.kv_type_v):
        if name not in llama.KV_TYPES:
            text = f"there is no KV type {name!r}; there are {', '.join(llama.KV_TYPES)}"
            raise EngineRefused(FaultKind.UNSUPPORTED, text)
    rows_max = max(order.batch_tokens_count, order.slots_count)
    return llama.Shape(
        n_ctx=order.context_tokens_count * order.slots_count,
        n_gpu_layers=weights.layers_count,
        n_batch=rows_max,
        n_ubatch=rows_max,
        n_seq_max=order.slots_count,
        n_outputs_max=0 if weights.is_pooled else min(rows_max, max(order.slots_count, OUTPUTS_MIN)),
        kv_type_k=order.kv_type_k,
        kv_type_v=order.kv_type_v,
        flash_attention=order.flash_attention,
        kv_unified=shares_cells(weights.library.api, weights.pointer, order.evaluation),
        repack=repacks(order),
        devices=(order.device,) if weights.layers_count else (),
    )


def _params(shape: llama.Shape, order: OpenLlm) -> Any:
    params = shape.context_parameters()
    if order.threads_count:
        params.n_threads = params.n_threads_batch = order.threads_count
    params.embeddings, params.no_perf = False, True
    return params


def fingerprint(order: OpenLlm, *, shares: bool) -> str:
    """What a saved state must agree on with the context that takes it in, which shares its cells or not."""
    facts = (
        llama.build_id(),
        order.fingerprint or order.path,
        order.kv_type_k,
        order.kv_type_v,
        order.flash_attention,
        str(order.evaluation),
        # With cells of its own for each slot a state carries the number of slots.
        0 if shares else order.slots_count,
        order.batch_tokens_count,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
