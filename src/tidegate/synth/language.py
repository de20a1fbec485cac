"""Synthetic language models: real layers with random weights, a real tokenizer and a chat template.

Owns the sizes and the names of their tensors. What a projector for images looks like is in `projectors`.
Architectures: `llama`; `qwen2vl`, with positions in three dimensions; `cohere2`, three of whose four layers
see a sliding window only; `lfm2`, every other layer of which remembers by a short convolution instead of a
cache, so that its past cannot be cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tidegate.runtime.models.tensor_types import GGML_NUMBERS, GGML_TYPES
from tidegate.synth.chat_templates import CHATML, LLAMA3
from tidegate.synth.layouts import Layout, Value, gguf_layout
from tidegate.synth.vocabulary import Vocabulary, chatml_vocabulary, llama3_vocabulary

HEAD_VALUES = 64
EPSILON = 1e-5
WINDOW_TOKENS = 256
CONVOLVED_TOKENS = 3
# Embeddings are smaller than an output matrix; this makes answers of the same size of them.
TIED_SCALE = 5.0
ROPE_BASE = 10_000.0
# What `general.file_type` says for each type of weights (llama.h, enum llama_ftype).
FILE_TYPES = MappingProxyType(
    {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_K": 15, "q5_K": 17, "q6_K": 18}
)


@dataclass(frozen=True, slots=True)
class LanguageRecipe:
    """A language model: its size, its family, and which projector for images is written beside it."""

    architecture: str
    family: str
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    layers: int
    context: int
    projector: str = ""

    @property
    def vocabulary(self) -> Vocabulary:
        return llama3_vocabulary() if self.family == "llama3" else chatml_vocabulary()

    @property
    def template(self) -> str:
        return LLAMA3 if self.family == "llama3" else CHATML


def _tiny(architecture: str, family: str, projector: str) -> LanguageRecipe:
    return LanguageRecipe(
        architecture, family, embedding=256, feed_forward=512, heads=4, kv_heads=2, layers=4, context=8192,
        projector=projector,
    )  # fmt: skip


LANGUAGE_RECIPES: Mapping[str, LanguageRecipe] = MappingProxyType(
    {
        "llama-tiny": _tiny("llama", "chatml", "mlp"),
        "llama3-tiny": _tiny("llama", "llama3", ""),
        "qwen2vl-tiny": _tiny("qwen2vl", "chatml", "qwen2vl_merger"),
        "cohere2-tiny": _tiny("cohere2", "chatml", ""),
        "lfm2-tiny": _tiny("lfm2", "chatml", ""),
        # 157 MB of f16 weights: large enough that loading and waking can be timed.
        "llama-100m": LanguageRecipe(
            "llama", "chatml", embedding=768, feed_forward=2048, heads=12, kv_heads=4, layers=12, context=8192
        ),
    }
)


def language_layout(name: str, weight_type: str) -> Layout:
    """The file of a named model, its weights of one type but for the vectors, which are f32."""
    recipe = LANGUAGE_RECIPES[name]
    return gguf_layout(
        _tensors(recipe),
        weight_type,
        architecture=recipe.architecture,
        title=f"{name} (synthetic)",
        metadata=_metadata(recipe, weight_type),
        typed=typed,
        zero_rows={_answers(recipe): recipe.vocabulary.silent_count},
    )


def typed(name: str, shape: tuple[int, ...], weight_type: str) -> str:
    """Vectors, tables of positions and convolutions stay f32, as engines ask; odd matrices stay f16."""
    if len(shape) < 2 or name.endswith(("position_embd.weight", "shortconv.conv.weight")):
        return "f32"
    block = GGML_TYPES[GGML_NUMBERS[weight_type]]
    return weight_type if len(shape) == 2 and shape[-1] % block.block_count == 0 else "f16"


def _answers(recipe: LanguageRecipe) -> str:
    """The matrix that makes words of the last layer."""
    return "token_embd.weight" if recipe.architecture == "cohere2" else "output.weight"


def _caches(recipe: LanguageRecipe, layer: int) -> bool:
    return recipe.architecture != "lfm2" or layer % 2 == 1


def _tensors(recipe: LanguageRecipe) -> list[tuple[str, tuple[int, ...]]]:
    width, words = recipe.embedding, len(recipe.vocabulary.tokens)
    last_norm = "token_embd_norm" if recipe.architecture == "lfm2" else "output_norm"
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (words, width)),
        (f"{last_norm}.weight", (width,)),
    ]
    if recipe.architecture != "cohere2":
        tensors.append(("output.weight", (words, width)))
    for layer in range(recipe.layers):
        block = f"blk.{layer}."
        attention = _attention(recipe) if _caches(recipe, layer) else _convolution(recipe)
        tensors += [(block + name, shape) for name, shape in (*attention, *_feed_forward(recipe))]
    return tensors


def _attention(recipe: LanguageRecipe) -> list[tuple[str, tuple[int, ...]]]:
    width, kv_width = recipe.embedding, recipe.kv_heads * HEAD_VALUES
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("attn_norm.weight", (width,)),
        ("attn_q.weight", (width, width)),
        ("attn_k.weight", (kv_width, width)),
        ("attn_v.weight", (kv_width, width)),
        ("attn_output.weight", (width, width)),
    ]
    if recipe.architecture == "qwen2vl":
        tensors += [("attn_q.bias", (width,)), ("attn_k.bias", (kv_width,)), ("attn_v.bias", (kv_width,))]
    if recipe.architecture == "lfm2":
        tensors += [("attn_q_norm.weight", (HEAD_VALUES,)), ("attn_k_norm.weight", (HEAD_VALUES,))]
    return tensors


def _convolution(recipe: LanguageRecipe) -> list[tuple[str, tuple[int, ...]]]:
    width = recipe.embedding
    return [
        ("attn_norm.weight", (width,)),
        ("shortconv.conv.weight", (width, CONVOLVED_TOKENS)),
        ("shortconv.in_proj.weight", (3 * width, width)),
        ("shortconv.out_proj.weight", (width, width)),
    ]


def _feed_forward(recipe: LanguageRecipe) -> list[tuple[str, tuple[int, ...]]]:
    width, inner = recipe.embedding, recipe.feed_forward
    # Cohere's layers attend and think side by side, behind one norm.
    norm = [] if recipe.architecture == "cohere2" else [("ffn_norm.weight", (width,))]
    return [
        *norm,
        ("ffn_gate.weight", (inner, width)),
        ("ffn_up.weight", (inner, width)),
        ("ffn_down.weight", (width, inner)),
    ]


def _metadata(recipe: LanguageRecipe, weight_type: str) -> dict[str, Value]:
    vocabulary = recipe.vocabulary
    own: dict[str, Value] = {
        "context_length": recipe.context,
        "embedding_length": recipe.embedding,
        "block_count": recipe.layers,
        "feed_forward_length": recipe.feed_forward,
        "attention.head_count": recipe.heads,
        "attention.head_count_kv": recipe.kv_heads,
        "attention.layer_norm_rms_epsilon": EPSILON,
        "rope.dimension_count": HEAD_VALUES,
        "rope.freq_base": ROPE_BASE,
        "vocab_size": len(vocabulary.tokens),
    }
    if recipe.architecture == "qwen2vl":
        # Half a head's values, shared out over time, height and width.
        own["rope.dimension_sections"] = [8, 12, 12, 0]
    if recipe.architecture == "cohere2":
        own["attention.layer_norm_epsilon"] = EPSILON
        own["attention.sliding_window"] = WINDOW_TOKENS
        own["logit_scale"] = TIED_SCALE
    if recipe.architecture == "lfm2":
        layers = range(recipe.layers)
        own["attention.head_count_kv"] = [recipe.kv_heads if _caches(recipe, n) else 0 for n in layers]
        own["shortconv.l_cache"] = CONVOLVED_TOKENS
    return {
        "general.file_type": FILE_TYPES[weight_type],
        **{f"{recipe.architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": vocabulary.pre_tokenizer,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.kinds,
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.bos_token_id": vocabulary.number(vocabulary.begin),
        "tokenizer.ggml.eos_token_id": vocabulary.number(vocabulary.end),
        "tokenizer.ggml.add_bos_token": vocabulary.adds_begin,
        "tokenizer.chat_template": recipe.template,
    }
