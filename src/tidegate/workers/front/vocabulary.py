"""Vocabulary: a model opened without its weights, for tokens, pieces, templates and the check of grammars.

Owns one `vocab_only` model of llama.cpp on no device: a megabyte or so that stays while weights come and go.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, Final  # Any: pointers of the bindings

from tidegate_engines import llama

from tidegate.core.faults import ClientError
from tidegate.workers.front.templates import Specials, Template

_PIECE_BYTES: Final = 256
_META_BYTES: Final = 1 << 20
# llama.cpp reads grammars by recursion, and ends the process when the stack does.
_GRAMMAR_DEPTH_MAX: Final = 128


class UnreadableModel(Exception):
    """The file is no model that llama.cpp knows, or has no vocabulary."""


class Vocabulary:
    """The tokens of one model."""

    def __init__(self, path: str) -> None:
        """Open it. Raises `UnreadableModel`."""
        self._api: Any = llama.bindings()
        log = llama.log()
        log.forget()
        params = self._api.llama_model_default_params()
        params.vocab_only = True
        devices = llama.device_list([])
        params.devices = ctypes.cast(devices, ctypes.c_void_p)
        self._model = self._api.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise UnreadableModel(log.reason() or "llama.cpp gave no reason")
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.count = int(self._api.llama_vocab_n_tokens(self._vocab))
        self.name = self._meta("general.name")
        self.architecture = self._meta("general.architecture")
        # A model without weights has not read its figures either.
        self.context_trained_count = int(self._meta(f"{self.architecture}.context_length") or 0)
        self.embedding_count = int(self._meta(f"{self.architecture}.embedding_length") or 0)
        self._pieces: dict[int, bytes] = {}
        self._controls = self._found_controls()
        self.specials = Specials(tuple(self._controls.values()))
        self.longest_bytes = max((len(self.text(token)) for token in range(self.count)), default=1)

    def close(self) -> None:
        """Give the model back."""
        self._api.llama_model_free(self._model)

    def _found_controls(self) -> dict[int, str]:
        is_control = self._api.llama_vocab_is_control
        found = [token for token in range(self.count) if is_control(self._vocab, token)]
        return {token: self.text(token).decode("utf-8", "replace") for token in found}

    def _meta(self, key: str) -> str:
        value = ctypes.create_string_buffer(_META_BYTES)
        if self._api.llama_model_meta_val_str(self._model, key.encode(), value, len(value)) < 0:
            return ""
        return value.value.decode("utf-8", "replace")

    def template(self, own: str = "") -> Template | None:
        """The chat template given, else the one in the file, if there is one. Raises ClientError when it is
        broken.
        """
        source = own.encode() or self._api.llama_model_chat_template(self._model, None)
        if not source:
            return None
        bos, eos = self._api.llama_vocab_bos(self._vocab), self._api.llama_vocab_eos(self._vocab)
        spellings = [self.text(token).decode() if token >= 0 else "" for token in (bos, eos)]
        return Template(source.decode("utf-8", "replace"), bos=spellings[0], eos=spellings[1])

    # ------------------------------------------------------------ text to tokens

    def tokens(self, text: str, *, adds_special: bool, parses_special: bool) -> list[int]:
        """The tokens of a text."""
        raw = text.encode("utf-8", "surrogatepass")
        room = len(raw) + 16
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self._api.llama_tokenize(
                self._vocab, raw, len(raw), buffer, room, adds_special, parses_special
            )
            if count >= 0:
                return buffer[:count]
            room = -count

    def first_token(self) -> list[int]:
        """What an empty prompt begins with: the token for the beginning of a text, where there is one."""
        bos = self._api.llama_vocab_bos(self._vocab)
        return [bos] if bos >= 0 else []

    def check(self, tokens: Iterable[int]) -> None:
        """Raise ClientError `bad_token` for what is no token of this model."""
        for token in tokens:
            if not 0 <= token < self.count:
                raise ClientError(
                    f"There is no token {token}; this model has {self.count}.", code="bad_token"
                )

    # ------------------------------------------------------------ tokens to text

    def text(self, token: int) -> bytes:
        """How a token is written in the vocabulary itself."""
        return self._api.llama_vocab_get_text(self._vocab, token) or b""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for, control tokens as they are spelled."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._piece(token)
        return found

    def _piece(self, token: int) -> bytes:
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._api.llama_token_to_piece(self._vocab, token, buffer, room, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def hidden(self, kept: Sequence[str]) -> frozenset[int]:
        """Control tokens that are not shown in an answer: all but those that are spelled like `kept`."""
        return frozenset(token for token, text in self._controls.items() if text not in kept)

    # ------------------------------------------------------------ grammars

    def check_grammar(self, grammar: str) -> None:
        """Raise ClientError `bad_grammar` for a grammar that llama.cpp does not take."""
        depth = deepest = 0
        for letter in grammar:
            depth += (letter == "(") - (letter == ")")
            deepest = max(deepest, depth)
        if deepest > _GRAMMAR_DEPTH_MAX or "\0" in grammar:
            raise ClientError("The grammar is nested too deeply.", code="bad_grammar")
        log = llama.log()
        log.forget()
        sampler = self._api.llama_sampler_init_grammar(self._vocab, grammar.encode(), b"root")
        if not sampler:
            reason = log.reason() or "llama.cpp does not take it"
            raise ClientError(
                f"The grammar is invalid: {reason}.",
                remedy="It is GBNF, and begins with the rule `root`.",
                code="bad_grammar",
            )
        self._api.llama_sampler_free(sampler)
