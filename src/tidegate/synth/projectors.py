"""Synthetic projectors: the small vision models that turn an image into embeddings for a language model.

Owns their sizes and the names of their tensors, for two kinds: `mlp`, of one fixed image size, as LLaVA's,
and `qwen2vl_merger`, of any size, four patches to a token, as Qwen2-VL's. The models they belong to are in
`language`.
"""

from __future__ import annotations

from tidegate.synth.language import LanguageRecipe, typed
from tidegate.synth.layouts import Layout, Value, gguf_layout

MERGER = "qwen2vl_merger"
WIDTH = 64
INNER = 128
HEADS = 4
LAYERS = 2
IMAGE_PX = 56
PATCH_PX = 14
MERGED_SIDE = 2
COLOURS = 3
# The means and deviations of the pictures CLIP was trained on; preprocessing subtracts and divides.
MEAN = [0.48145466, 0.4578275, 0.40821073]
DEVIATION = [0.26862954, 0.26130258, 0.27577711]


def projector_layout(name: str, recipe: LanguageRecipe) -> Layout:
    """The projector's file for a language model of this width; its weights are always f16."""
    return gguf_layout(
        _tensors(recipe.projector, recipe.embedding),
        "f16",
        architecture="clip",
        title=f"{name} (synthetic)",
        metadata=_metadata(recipe.projector, recipe.embedding),
        typed=typed,
    )


def _block_count(kind: str) -> int:
    # LLaVA's projector takes the last layer but one: the engine computes one layer less than are stored.
    return LAYERS if kind == MERGER else LAYERS + 1


def _tensors(kind: str, answer_width: int) -> list[tuple[str, tuple[int, ...]]]:
    patch = (WIDTH, COLOURS, PATCH_PX, PATCH_PX)
    tensors: list[tuple[str, tuple[int, ...]]] = [("v.patch_embd.weight", patch)]
    if kind == MERGER:
        tensors += [("v.patch_embd.weight.1", patch), *_affine("v.post_ln", (WIDTH,))]
    else:
        tensors.append(("v.position_embd.weight", ((IMAGE_PX // PATCH_PX) ** 2, WIDTH)))
    for layer in range(_block_count(kind)):
        block = f"v.blk.{layer}."
        tensors += _affine(block + "ln1", (WIDTH,))
        tensors += _affine(block + "ln2", (WIDTH,))
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors += _affine(block + part, (WIDTH, WIDTH))
        tensors += _affine(block + "ffn_up", (INNER, WIDTH))
        tensors += _affine(block + "ffn_down", (WIDTH, INNER))
    merged = WIDTH * MERGED_SIDE**2 if kind == MERGER else WIDTH
    tensors += _affine("mm.0", (merged, merged))
    tensors += _affine("mm.2", (answer_width, merged))
    return tensors


def _affine(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", shape), (f"{name}.bias", shape[:1])]


def _metadata(kind: str, answer_width: int) -> dict[str, Value]:
    own: dict[str, Value] = {
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "block_count": _block_count(kind),
        "projection_dim": answer_width,
        "attention.head_count": HEADS,
        "attention.layer_norm_epsilon": 1e-5,
        "image_size": IMAGE_PX,
        "patch_size": PATCH_PX,
        "image_mean": MEAN,
        "image_std": DEVIATION,
    }
    if kind == MERGER:
        own["spatial_merge_size"] = MERGED_SIDE
    return {
        "general.file_type": 1,
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": kind,
        "clip.use_gelu": True,
        **{f"clip.vision.{key}": value for key, value in own.items()},
    }
