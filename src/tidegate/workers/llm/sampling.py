"""Sampling: how a stream's next token is chosen, by chains of llama.cpp's own samplers.

Owns building a chain, bringing it up to date with a history, and choosing. No state of a sampler is ever
saved: penalties and grammars are told the history again, and the random number of a token comes from the seed
and the token's place in the answer, so that a text goes on after a crash as it would have without.
Samplers with a further state of their own (mirostat, adaptive-p, XTC) are not offered.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Final  # Any: pointers of the bindings

import msgspec
import numpy as np

from tidegate.wire import asks
from tidegate.wire.llm_link import Likely
from tidegate.wire.messages import FaultKind
from tidegate.workers.llm.context import Context
from tidegate.workers.llm.library import Library
from tidegate.workers.llm.weights import EngineRefused, Weights

_MASK_32: Final = (1 << 32) - 1
_MASK_64: Final = (1 << 64) - 1
_ROOT: Final = b"root"
# What llama.cpp's own server keeps at least, whatever the parameters say.
_KEEP_MIN: Final = 1
_CANDIDATE: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def random_seed(seed: int, place: int) -> int:
    """32 bits for the token at this place of the answer (splitmix64 of both)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + place * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
    # The largest value means "choose a seed yourself" to llama.cpp.
    return min((mixed ^ (mixed >> 31)) & _MASK_32, _MASK_32 - 1)


class Chain:
    """One stream's samplers. `place` is how many tokens of the answer they have seen."""

    def __init__(
        self,
        weights: Weights,
        sampling: asks.Sampling,
        *,
        grammar: str = "",
        triggers: Sequence[str] = (),
        context_tokens_count: int,
    ) -> None:
        """Build it. Raises `EngineRefused` for a grammar that llama.cpp does not take."""
        if sampling.dry_penalty_last_count < 0:
            sampling = msgspec.structs.replace(sampling, dry_penalty_last_count=context_tokens_count)
        if sampling.repeat_last_count < 0:
            sampling = msgspec.structs.replace(sampling, repeat_last_count=context_tokens_count)
        self._api, self._weights, self._sampling = weights.library.api, weights, sampling
        self.place = 0
        self._grammar = _grammar(weights.library, weights, grammar, triggers) if grammar else None
        params = self._api.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = self._api.llama_sampler_chain_init(params)
        self._is_random = sampling.temperature > 0
        for sampler in _samplers(self._api, weights, sampling):
            self._api.llama_sampler_chain_add(self._chain, sampler)
        self._last = int(self._api.llama_sampler_chain_n(self._chain)) - 1
        # Grammars look at candidates one by one: the array is ours then, and filled again for a second look.
        self._candidates = np.zeros(weights.vocabulary_count if grammar else 0, dtype=_CANDIDATE)

    def free(self) -> None:
        """Give back what the samplers hold."""
        self._api.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._api.llama_sampler_free(self._grammar)

    def remember(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Tell fresh samplers the history: penalties look back into the prompt, a grammar never does."""
        reach = self._reach()
        recent = [token for token in prompt[len(prompt) - min(reach, len(prompt)) :] if token >= 0]
        for token in recent:
            self._api.llama_sampler_accept(self._chain, token)
        for token in generated:
            self._api.llama_sampler_accept(self._chain, token)
            if self._grammar is not None:
                self._api.llama_sampler_accept(self._grammar, token)
        self.place = len(generated)

    def _reach(self) -> int:
        sampling = self._sampling
        reach = sampling.repeat_last_count if has_penalties(sampling) else 0
        return max(reach, sampling.dry_penalty_last_count) if sampling.dry_multiplier > 0 else reach

    def choose(self, context: Context, row: int) -> int:
        """Choose the next token from the logits of this row of the last batch."""
        if self._is_random:
            api = self._api
            api.llama_sampler_free(api.llama_sampler_chain_remove(self._chain, self._last))
            dice = api.llama_sampler_init_dist(random_seed(self._sampling.seed, self.place))
            api.llama_sampler_chain_add(self._chain, dice)
        self.place += 1
        if self._grammar is None:
            return int(self._api.llama_sampler_sample(self._chain, context.pointer, row))
        return self._choose_by_grammar(context, row)

    def _choose_by_grammar(self, context: Context, row: int) -> int:
        # As llama.cpp's server does: choose freely, ask the grammar about this one token, and only when it
        # objects have it judge the whole vocabulary, which takes milliseconds.
        token = self._sampled(context, row, obeys=False)
        if not self._is_allowed(token):
            token = self._sampled(context, row, obeys=True)
        self._api.llama_sampler_accept(self._chain, token)
        self._api.llama_sampler_accept(self._grammar, token)
        return token

    def _sampled(self, context: Context, row: int, *, obeys: bool) -> int:
        candidates = self._candidates
        candidates["id"] = np.arange(len(candidates), dtype=np.int32)
        candidates["logit"] = context.logits(row, len(candidates))
        candidates["p"] = 0
        array = self._array(candidates)
        if obeys:
            self._api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = array.data[array.selected]
        if not math.isfinite(chosen.logit):
            # Accepting what the grammar forbids would end the process.
            raise EngineRefused(FaultKind.INVALID_REQUEST, "no token of this model continues the grammar")
        return int(chosen.id)

    def _is_allowed(self, token: int) -> bool:
        one = np.array([(token, 1.0, 0.0)], dtype=_CANDIDATE)
        array = self._array(one)
        self._api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(np.isfinite(one["logit"][0]))

    def _array(self, candidates: np.ndarray[Any, np.dtype[np.void]]) -> Any:
        data = candidates.ctypes.data_as(self._api.llama_token_data_p)
        return self._api.llama_token_data_array(data, len(candidates), -1, False)

    def likely(self, context: Context, row: int, token: int) -> Likely:
        """The logarithms of the probabilities of this token and of the likeliest ones, before sampling."""
        logits = context.logits(row, self._weights.vocabulary_count).astype(np.float64)
        top = logits.max()
        logarithms = logits - (top + np.log(np.exp(logits - top).sum()))
        count = min(self._sampling.logprobs_count, len(logarithms))
        best = np.argpartition(-logarithms, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
        best = best[np.argsort(-logarithms[best], kind="stable")]
        return Likely(float(logarithms[token]), tuple(best.tolist()), tuple(logarithms[best].tolist()))


def has_penalties(sampling: asks.Sampling) -> bool:
    """Whether repeating, presence or frequency are penalised at all."""
    wanted = (sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    return wanted != (1.0, 0.0, 0.0) and sampling.repeat_last_count != 0


def _samplers(api: Any, weights: Weights, sampling: asks.Sampling) -> list[Any]:
    """The samplers in the order of llama.cpp's own server; those that change nothing are left out."""
    count = weights.vocabulary_count
    found = []
    bias = dict(sampling.logit_bias)
    if sampling.ignore_eos:
        bias.update(dict.fromkeys(weights.ends, float("-inf")))
    if bias:
        packed = (api.llama_logit_bias * len(bias))(*bias.items())
        found.append(api.llama_sampler_init_logit_bias(count, len(bias), packed))
    if has_penalties(sampling):
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        found.append(api.llama_sampler_init_penalties(count, sampling.repeat_last_count, *penalties))
    if sampling.dry_multiplier > 0:
        found.append(_dry(api, weights, sampling))
    if sampling.temperature <= 0:
        return [*found, api.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        found.append(api.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        found.append(api.llama_sampler_init_typical(sampling.typical_p, _KEEP_MIN))
    if sampling.top_p < 1:
        found.append(api.llama_sampler_init_top_p(sampling.top_p, _KEEP_MIN))
    if sampling.min_p > 0:
        found.append(api.llama_sampler_init_min_p(sampling.min_p, _KEEP_MIN))
    found.append(api.llama_sampler_init_temp(sampling.temperature))
    return [*found, api.llama_sampler_init_dist(0)]


def _dry(api: Any, weights: Weights, sampling: asks.Sampling) -> Any:
    breakers = [text.encode() for text in sampling.dry_sequence_breakers]
    packed = (ctypes.c_char_p * max(1, len(breakers)))(*breakers)
    return api.llama_sampler_init_dry(
        weights.vocab,
        sampling.dry_multiplier,
        sampling.dry_base,
        sampling.dry_allowed_length,
        sampling.dry_penalty_last_count,
        packed,
        len(breakers),
    )


def _grammar(lib: Library, weights: Weights, grammar: str, triggers: Sequence[str]) -> Any:
    api = lib.api
    lib.forget()
    if triggers:
        patterns = (ctypes.c_char_p * len(triggers))(*(_escaped(trigger).encode() for trigger in triggers))
        found = api.llama_sampler_init_grammar_lazy_patterns(
            weights.vocab, grammar.encode(), _ROOT, patterns, len(triggers), None, 0
        )
    else:
        found = api.llama_sampler_init_grammar(weights.vocab, grammar.encode(), _ROOT)
    if not found:
        raise EngineRefused(FaultKind.INVALID_REQUEST, f"the grammar is invalid: {lib.reason()}")
    return found


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in r"\^$.|?*+()[]{}-/" else letter for letter in text)
