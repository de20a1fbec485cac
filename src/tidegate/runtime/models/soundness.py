"""Soundness: whether a model fits the role it was given, before an engine sees it.

Owns the checks that need only headers: is it an image model, do its key tensors have its family's shapes,
does a companion fit. The engine checks every tensor when it opens the files; these checks come first because
their sentences name file, problem and remedy. What files make up one image model is the neighbour
`assembly`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tidegate.runtime.models import refusals
from tidegate.runtime.models.identity import DIFFUSION_PREFIXES, TAESD_PREFIXES, VAE_PREFIXES, Kind
from tidegate.runtime.models.shelf import Model

# Shapes in torch order; None is an extent that differs between members of a family.
Shape = tuple[int | None, ...]


def _unet_keys(channels: int, *, label: int = 0) -> Mapping[str, Shape]:
    keys: dict[str, Shape] = {
        "input_blocks.0.0.weight": (320, channels, 3, 3),
        "time_embed.0.weight": (1280, 320),
        "out.2.weight": (4, 320, 3, 3),
    }
    if label:
        keys["label_emb.0.0.weight"] = (1280, label)
    return keys


# Tensors whose shapes the architecture fixes, whatever the training; from the papers' reference code.
_FLUX_KEYS: Mapping[str, Shape] = {"txt_in.weight": (3072, 4096), "final_layer.linear.weight": (64, 3072)}
KEY_SHAPES: Mapping[str, Mapping[str, Shape]] = MappingProxyType(
    {
        "SD 1.x": _unet_keys(4),
        "SD 1.x Inpaint": _unet_keys(9),
        "Instruct-Pix2Pix": _unet_keys(8),
        "SD 1.x Tiny UNet": _unet_keys(4),
        "SD 2.x": _unet_keys(4),
        "SD 2.x Inpaint": _unet_keys(9),
        "SDXL": _unet_keys(4, label=2816),
        "SDXL Inpaint": _unet_keys(9, label=2816),
        "SD3.x": {
            "x_embedder.proj.weight": (None, 16, 2, 2),
            "context_embedder.weight": (None, 4096),
            "y_embedder.mlp.0.weight": (None, 2048),
            "final_layer.linear.weight": (64, None),
        },
        "Flux": {"img_in.weight": (3072, 64), **_FLUX_KEYS},
        "Flux Fill": {"img_in.weight": (3072, 384), **_FLUX_KEYS},
        "Flux Control": {"img_in.weight": (3072, 128), **_FLUX_KEYS},
    }
)
VAE_KEYS: Mapping[str, Shape] = MappingProxyType(
    {"decoder.conv_in.weight": (512, None, 3, 3), "decoder.conv_out.weight": (3, 128, 3, 3)}
)
TAESD_KEYS: Mapping[str, Shape] = MappingProxyType(
    {"decoder.layers.0.weight": (64, None, 3, 3), "decoder.layers.18.weight": (3, 64, 3, 3)}
)

# What may be given for a role, and how the role's option is called.
ROLE_KINDS: Mapping[str, tuple[Kind, ...]] = MappingProxyType(
    {
        "diffusion_model": (Kind.DIFFUSION, Kind.CHECKPOINT),
        "clip_l": (Kind.CLIP_L,),
        "clip_g": (Kind.CLIP_G,),
        "t5xxl": (Kind.T5XXL,),
        "llm": (Kind.LLM,),
        "vae": (Kind.VAE,),
        "taesd": (Kind.TAESD,),
    }
)
ROLE_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "diffusion_model": "a diffusion model",
        "clip_l": "a CLIP-L text encoder",
        "clip_g": "a CLIP-G text encoder",
        "t5xxl": "a T5-XXL text encoder",
        "llm": "a language model",
        "vae": "a VAE",
        "taesd": "a TAESD",
    }
)


def check_image_model(model: Model) -> None:
    """Refuse what is not an image model, or whose key tensors do not have its family's shapes."""
    if model.identity.kind not in (Kind.CHECKPOINT, Kind.DIFFUSION):
        raise refusals.not_an_image_model(model.path, model.identity.words)
    _check_keys(model, DIFFUSION_PREFIXES, KEY_SHAPES.get(model.identity.family, {}))
    if "vae" in model.identity.components and model.identity.latent_channels_count in (4, 16):
        keys = {**VAE_KEYS, "decoder.conv_in.weight": (512, model.identity.latent_channels_count, 3, 3)}
        _check_keys(
            model, VAE_PREFIXES, {} if model.identity.family.startswith(("Wan", "Qwen", "Anima")) else keys
        )


def check_role(model: Model, role: str) -> None:
    """Refuse a file given for a role (`vae`, `clip_l`, ...) that it cannot play."""
    if model.identity.kind not in ROLE_KINDS[role]:
        option = "--" + role.replace("_", "-")
        raise refusals.wrong_role(
            model.path, option=option, wanted=ROLE_WORDS[role], what=model.identity.words
        )
    if role == "taesd":
        _check_keys(model, TAESD_PREFIXES, TAESD_KEYS)


def check_latents(image: Model, decoder: Model) -> None:
    """Refuse a VAE or TAESD for another number of latent channels than the image model makes."""
    wanted, found = image.identity.latent_channels_count, decoder.identity.latent_channels_count
    if wanted and found and wanted != found:
        raise refusals.vae_does_not_match(
            decoder.path, found_count=found, family=image.identity.family, wanted_count=wanted
        )


def _check_keys(model: Model, prefixes: tuple[str, ...], keys: Mapping[str, Shape]) -> None:
    """Compare the key tensors that are present; that all are present is for the engine to say."""
    for key, expected in keys.items():
        for prefix in (*prefixes, ""):
            tensor = model.file.by_name.get(prefix + key)
            if tensor is not None and not _fits(tensor.shape, expected):
                family = model.identity.family if prefixes != TAESD_PREFIXES else "TAESD"
                shown = "x".join("any" if n is None else str(n) for n in expected)
                raise refusals.wrong_shape(
                    model.path, family, tensor=tensor.name, found=tensor.shape, expected=shown
                )


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    """Whether the shapes agree; leading ones are dropped because GGUF does not keep them."""
    found = list(shape)
    while len(found) > len(expected) and found[0] == 1:
        found.pop(0)
    padded = [1] * (len(expected) - len(found)) + found
    return len(padded) == len(expected) and all(
        want is None or have == want for have, want in zip(padded, expected, strict=True)
    )
