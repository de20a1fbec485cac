"""Synthetic language models and projectors: what is in their files, by readers that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any  # what the gguf package's fields hold

import gguf
import numpy as np
import pytest

from tidegate.runtime.models.identity import Kind
from tidegate.runtime.models.shelf import open_model
from tidegate.synth.checkpoints import plan_files, synthesise
from tidegate.synth.language import LANGUAGE_RECIPES
from tidegate.synth.vocabulary import CONTROL, chatml_vocabulary, llama3_vocabulary


def fields_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", LANGUAGE_RECIPES)
@pytest.mark.parametrize("weight_type", ["f16", "q4_K"])
def test_the_shelf_knows_them(tmp_path: Path, name: str, weight_type: str) -> None:
    paths = synthesise(name, tmp_path, weight_type=weight_type, sparse=True)
    model = open_model(paths[0])
    assert (model.identity.kind, model.identity.architecture) == (
        Kind.LLM,
        LANGUAGE_RECIPES[name].architecture,
    )
    assert [open_model(path).identity.kind for path in paths[1:]] == (
        [Kind.MMPROJ] if LANGUAGE_RECIPES[name].projector else []
    )
    assert {path.stat().st_size for path in paths} == {
        file.layout.size_bytes for file in plan_files(name, tmp_path, weight_type=weight_type)
    }


def test_llama_is_short_for_the_one_that_can_be_timed(tmp_path: Path) -> None:
    (file,) = plan_files("llama", tmp_path)
    assert file.path.name == "llama-100m.gguf"
    assert file.layout.size_bytes > 100 * 2**20


@pytest.mark.parametrize(
    ("name", "vocabulary", "mark"),
    [("llama-tiny", chatml_vocabulary(), "<tool_call>"), ("llama3-tiny", llama3_vocabulary(), "<|eot_id|>")],
)
def test_the_tokenizer_is_whole(tmp_path: Path, name: str, vocabulary: Any, mark: str) -> None:
    fields = fields_of(synthesise(name, tmp_path)[0])
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens) == fields["llama.vocab_size"] == len(vocabulary.tokens)
    assert tokens[fields["tokenizer.ggml.eos_token_id"]] == vocabulary.end
    assert mark in tokens
    assert mark in fields["tokenizer.chat_template"]
    for merge in fields["tokenizer.ggml.merges"]:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= set(tokens)


def test_what_a_random_model_must_not_say_has_a_row_of_zeros(tmp_path: Path) -> None:
    for weight_type in ("f16", "q4_K"):
        path = synthesise("llama-tiny", tmp_path, weight_type=weight_type)[0]
        answers = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "output.weight")
        rows = np.asarray(answers.data).reshape(len(chatml_vocabulary().tokens), -1)
        spoken = len(rows) - chatml_vocabulary().silent_count
        assert rows[:spoken].any(axis=1).all()
        assert not rows[spoken:].any()
        kinds = chatml_vocabulary().kinds
        assert CONTROL not in kinds[:spoken]
