"""Identity: what a model file is, told by its tensors and never by its name.

Owns `Kind`, `Identity` and `identify`. Families of diffusion models are told apart by the neighbour
`signatures`; whether the file is sound and complete enough for an image is the neighbour `soundness`'s
question.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from tidegate.runtime.models.model_file import Format, ModelFile
from tidegate.runtime.models.signatures import BARE_DIFFUSION, FAMILIES, UNKNOWN_FAMILY, Names, family_of


class Kind(Enum):
    """What a file is good for; the value is how it is called towards people."""

    CHECKPOINT = "checkpoint"
    DIFFUSION = "diffusion model"
    CLIP_L = "CLIP-L text encoder"
    CLIP_G = "CLIP-G text encoder"
    T5XXL = "T5-XXL text encoder"
    CLIP_VISION = "CLIP vision encoder"
    VAE = "VAE"
    TAESD = "TAESD"
    LLM = "language model"
    MMPROJ = "multimodal projector"
    LORA = "LoRA"
    CONTROLNET = "ControlNet"
    EMBEDDING = "textual inversion"
    UPSCALER = "upscaler"
    UNKNOWN = "model of an unknown kind"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file is. `components` are those of a checkpoint; `latent_channels_count` is 0 where unknown."""

    kind: Kind
    family: str = UNKNOWN_FAMILY
    components: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    latent_channels_count: int = 0
    architecture: str = ""

    @property
    def words(self) -> str:
        """For sentences: 'a VAE', 'a language model (llama)', 'an SDXL checkpoint'."""
        name = self.kind.value
        if self.family != UNKNOWN_FAMILY:
            name = f"{self.family} {name}"
        if self.architecture:
            name = f"{name} ({self.architecture})"
        article = "an" if name[0] in "AEIOUaeiou" or name.startswith("SD") else "a"
        return f"{article} {name}"


DIFFUSION_PREFIXES = ("model.diffusion_model.", "unet.", "diffusion_model.")
VAE_PREFIXES = ("first_stage_model.", "vae.")
TAESD_PREFIXES = ("tae.", "taesd.")
TEXT_PREFIXES = (
    "cond_stage_model.",
    "conditioner.embedders.",
    "text_encoders.",
    "te.",
    "te1.",
    "te2.",
    "te3.",
)
SECOND_ENCODER_PREFIXES = (
    "cond_stage_model.1.",
    "conditioner.embedders.1.",
    "te.1.",
    "te2.",
    "text_encoders.clip_g.",
)
LORA_PARTS = (
    ".lora_down.",
    ".lora_up.",
    ".lora_A.",
    ".lora_B.",
    "_lora.down.",
    ".hada_w1_a",
    ".lokr_w1",
    ".lora.up.",
)
TOKEN_EMBEDDINGS = (
    "text_model.embeddings.token_embedding.weight",
    "transformer.text_model.embeddings.token_embedding.weight",
    "token_embedding.weight",
    "model.token_embedding.weight",
)
CLIP_BY_WIDTH = {768: Kind.CLIP_L, 1024: Kind.CLIP_L, 1280: Kind.CLIP_G}
T5_ARCHITECTURES = ("t5", "t5encoder")


def identify(file: ModelFile) -> Identity:
    """What the file is; always an answer, `Kind.UNKNOWN` when nothing fits."""
    names = Names({tensor.name: tensor.shape for tensor in file.tensors})
    architecture = file.metadata_text("general.architecture") if file.format is Format.GGUF else ""
    if names.contains_any(*LORA_PARTS):
        return Identity(Kind.LORA)
    if names.has_any("control_model.", "controlnet_", "input_hint_block.", "zero_convs."):
        return Identity(Kind.CONTROLNET)
    return (
        _with_diffusion(names)
        or _projector(names, architecture)
        or _language_model(names, architecture)
        or _autoencoder(names)
        or _text_encoder(names, architecture)
        or _small(names)
        or Identity(Kind.UNKNOWN, architecture=architecture)
    )


def _part(names: Names, prefixes: Iterable[str]) -> Names:
    """The tensors under the first of the prefixes that occurs, without it."""
    for prefix in prefixes:
        if names.has(prefix):
            inside = {
                n.removeprefix(prefix): shape for n, shape in names.items().items() if n.startswith(prefix)
            }
            return Names(inside)
    return Names({})


def _with_diffusion(names: Names) -> Identity | None:
    diffusion = _part(names, DIFFUSION_PREFIXES)
    if not diffusion and names.has_any(*BARE_DIFFUSION):
        diffusion = names
    if not diffusion:
        return None
    encoders = _encoders(names)
    family = family_of(diffusion, second_encoder=names.has_any(*SECOND_ENCODER_PREFIXES[:4]))
    vae = _part(names, VAE_PREFIXES)
    found = {"text_encoder": bool(encoders), "diffusion": True, "vae": vae.has_any("decoder.")}
    components = tuple(component for component, present in found.items() if present)
    channels = FAMILIES[family].vae_channels_count if family in FAMILIES else 0
    return Identity(
        kind=Kind.DIFFUSION if components == ("diffusion",) else Kind.CHECKPOINT,
        family=family,
        components=components,
        encoders=encoders,
        latent_channels_count=channels,
    )


def _encoders(names: Names) -> tuple[str, ...]:
    """Roles of the text encoders a checkpoint brings."""
    found = {
        "clip_l": names.has_any(
            "cond_stage_model.transformer.", "cond_stage_model.model.", "conditioner.embedders.0.",
            "text_encoders.clip_l.", "te.text_model.", "te1.",
        ),
        "clip_g": names.has_any(*SECOND_ENCODER_PREFIXES),
        "t5xxl": names.has_any("text_encoders.t5xxl.", "te3."),
        "llm": names.has_any("text_encoders.llm.", "text_encoders.qwen"),
    }  # fmt: skip
    if not any(found.values()) and names.has_any(*TEXT_PREFIXES):
        return ("clip_l",)
    return tuple(role for role, present in found.items() if present)


def _projector(names: Names, architecture: str) -> Identity | None:
    if architecture in ("clip", "mmproj") or names.has("v.blk.0.", "mm."):
        return Identity(Kind.MMPROJ, architecture=architecture)
    return None


def _language_model(names: Names, architecture: str) -> Identity | None:
    if architecture in T5_ARCHITECTURES:
        return None
    if names.has("token_embd.weight", "blk.0."):
        return Identity(Kind.LLM, architecture=architecture)
    if names.has_any("model.layers.0.self_attn.", "model.language_model.layers.0.self_attn."):
        return Identity(Kind.LLM)
    return None


def _autoencoder(names: Names) -> Identity | None:
    tiny = _part(names, TAESD_PREFIXES) or names
    if tiny.has_any("decoder.layers.0.", "decoder.1.weight"):
        channels = tiny.extent("decoder.layers.0.weight", 1) or tiny.extent("decoder.1.weight", 1)
        return Identity(Kind.TAESD, latent_channels_count=channels)
    vae = _part(names, VAE_PREFIXES) or names
    if vae.has_any("decoder.conv_in.", "decoder.conv1."):
        channels = vae.extent("decoder.conv_in.weight", 1) or vae.extent("decoder.conv1.weight", 1)
        return Identity(Kind.VAE, latent_channels_count=channels)
    return None


def _text_encoder(names: Names, architecture: str) -> Identity | None:
    if architecture in T5_ARCHITECTURES or names.has("enc.blk.0."):
        return Identity(Kind.T5XXL, architecture=architecture)
    if names.has("encoder.block.0.layer.0.SelfAttention."):
        return Identity(Kind.T5XXL)
    inside = _part(names, ("text_encoders.clip_l.", "text_encoders.clip_g.", "cond_stage_model.")) or names
    width = next((inside.extent(name, -1) for name in TOKEN_EMBEDDINGS if inside.shape(name)), 0)
    if width in CLIP_BY_WIDTH:
        return Identity(CLIP_BY_WIDTH[width])
    if names.has_any("vision_model.encoder.layers.0."):
        return Identity(Kind.CLIP_VISION)
    return None


def _small(names: Names) -> Identity | None:
    if names.has_any("emb_params", "string_to_param") or names.items().keys() <= {
        "clip_l",
        "clip_g",
        "t5xxl",
    }:
        return Identity(Kind.EMBEDDING)
    if names.has_any("body.0.rdb1.", "model.1.sub.0.", "RRDB_trunk.0."):
        return Identity(Kind.UPSCALER)
    return None
