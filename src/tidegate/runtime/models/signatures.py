"""Signatures: by which tensors a family of diffusion models is known, and what follows from the family.

Owns the table of families with their marks, latent channels and text encoders. Families are named as the
engine names them. The marks follow the engine's own version detection, so that both agree on what a file is;
what a whole file is (checkpoint, VAE, language model) is decided by the neighbour `identity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

UNKNOWN_FAMILY = "unknown"


class Names:
    """The tensors of one component by their names inside it, with quick questions about prefixes and
    shapes.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._text = "\n" + "\n".join(shapes)

    def __bool__(self) -> bool:
        return bool(self._shapes)

    def has(self, *prefixes: str) -> bool:
        """Whether every prefix begins the name of some tensor."""
        return all(f"\n{prefix}" in self._text for prefix in prefixes)

    def has_any(self, *prefixes: str) -> bool:
        """Whether any of the prefixes begins the name of some tensor."""
        return any(f"\n{prefix}" in self._text for prefix in prefixes)

    def contains_any(self, *parts: str) -> bool:
        """Whether any part occurs anywhere in some name."""
        return any(part in self._text for part in parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, empty when it is absent."""
        return self._shapes.get(name, ())

    def extent(self, name: str, axis: int) -> int:
        """One extent of a tensor's shape, 0 when there is none."""
        shape = self.shape(name)
        return shape[axis] if -len(shape) <= axis < len(shape) else 0

    def items(self) -> Mapping[str, tuple[int, ...]]:
        """All names with their shapes."""
        return self._shapes


@dataclass(frozen=True, slots=True)
class Family:
    """What a family needs around its diffusion model; `vae_channels_count` is 0 when it has no VAE."""

    name: str
    vae_channels_count: int
    encoders: tuple[str, ...]
    """Roles of the text encoders; of those in `optional` any one is enough."""
    optional: bool = False


def _family(name: str, vae_channels_count: int, *encoders: str) -> Family:
    return Family(name, vae_channels_count, encoders)


_ALL = (
    _family("SD 1.x", 4, "clip_l"),
    _family("SD 1.x Inpaint", 4, "clip_l"),
    _family("Instruct-Pix2Pix", 4, "clip_l"),
    _family("SD 1.x Tiny UNet", 4, "clip_l"),
    _family("SD 2.x", 4, "clip_l"),
    _family("SD 2.x Inpaint", 4, "clip_l"),
    _family("SD 2.x Tiny UNet", 4, "clip_l"),
    _family("SDXS (512-DS)", 4, "clip_l"),
    _family("SDXS (09)", 4, "clip_l"),
    _family("SDXL", 4, "clip_l", "clip_g"),
    _family("SDXL Inpaint", 4, "clip_l", "clip_g"),
    _family("SDXL Instruct-Pix2Pix", 4, "clip_l", "clip_g"),
    _family("SDXL (Vega)", 4, "clip_l", "clip_g"),
    _family("SDXL (SSD1B)", 4, "clip_l", "clip_g"),
    _family("SVD", 4),
    Family("SD3.x", 16, ("clip_l", "clip_g", "t5xxl"), optional=True),
    Family("Flux", 16, ("clip_l", "t5xxl"), optional=True),
    _family("Flux Fill", 16, "clip_l", "t5xxl"),
    _family("Flux Control", 16, "clip_l", "t5xxl"),
    _family("Flex.2", 16, "clip_l", "t5xxl"),
    _family("Chroma Radiance", 0, "t5xxl"),
    _family("Wan 2.x", 16, "t5xxl"),
    _family("Wan 2.2 I2V", 16, "t5xxl"),
    _family("Wan 2.2 TI2V", 48, "t5xxl"),
    _family("Qwen Image", 16, "llm"),
    _family("Anima", 16, "llm"),
    _family("Flux.2", 32, "llm"),
    _family("Flux.2 klein", 32, "llm"),
    _family("Z-Image", 16, "llm"),
    _family("Ovis Image", 16, "llm"),
    _family("Ernie Image", 32, "llm"),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})

# Tensors by which a file that holds only a diffusion model, without any prefix, is known as one.
BARE_DIFFUSION = (
    "input_blocks.0.0.",
    "down_blocks.0.resnets.0.time_emb_proj.",
    "joint_blocks.0.",
    "double_blocks.0.",
    "transformer_blocks.0.attn.",
    "transformer_blocks.0.img_mod.",
    "nerf_final_layer_conv.",
    "cap_embedder.0.",
    "layers.0.adaLN_sa_ln.",
    "blocks.0.cross_attn.norm_k.",
    "llm_adapter.blocks.0.cross_attn.",
    "net.llm_adapter.blocks.0.cross_attn.",
)

# Marks that are enough by themselves, in the engine's order.
_SINGLE_MARKS: tuple[tuple[str, str], ...] = (
    ("nerf_final_layer_conv.", "Chroma Radiance"),
    ("joint_blocks.", "SD3.x"),
    ("transformer_blocks.0.img_mod.1.weight", "Qwen Image"),
    ("llm_adapter.blocks.0.cross_attn.q_proj.weight", "Anima"),
    ("net.llm_adapter.blocks.0.cross_attn.q_proj.weight", "Anima"),
    ("double_blocks.0.img_mlp.gate_proj.weight", "Ovis Image"),
    ("cap_embedder.0.weight", "Z-Image"),
    ("layers.0.adaLN_sa_ln.weight", "Ernie Image"),
    ("input_blocks.8.0.time_mixer.mix_factor", "SVD"),
    # Files of SD3 in diffusers' names: the engine renames them while it reads.
    ("transformer_blocks.0.attn.add_q_proj.weight", "SD3.x"),
)


def family_of(diffusion: Names, *, second_encoder: bool) -> str:
    """The family of a diffusion model by its tensors, or `UNKNOWN_FAMILY`."""
    for recognise in (_by_single_mark, _wan, _flux):
        family = recognise(diffusion)
        if family:
            return family
    if diffusion.has_any("input_blocks.", "down_blocks."):
        return _unet(diffusion, second_encoder=second_encoder)
    return UNKNOWN_FAMILY


def _by_single_mark(names: Names) -> str:
    if names.has("single_transformer_blocks.0."):
        return ""
    return next((family for mark, family in _SINGLE_MARKS if names.has(mark)), "")


def _wan(names: Names) -> str:
    if not names.has("blocks.0.cross_attn.norm_k.weight"):
        return ""
    channels = names.extent("patch_embedding.weight", 1)
    if names.has("img_emb"):
        return "Wan 2.x"
    return {36: "Wan 2.2 I2V", 48: "Wan 2.2 TI2V"}.get(channels, "Wan 2.x")


def _flux(names: Names) -> str:
    if names.has("double_stream_modulation_img.lin.weight"):
        return "Flux.2" if names.has("single_blocks.47.linear1.weight") else "Flux.2 klein"
    if not names.has_any("double_blocks.", "single_transformer_blocks.0."):
        return ""
    inputs = {384: "Flux Fill", 128: "Flux Control", 196: "Flex.2"}
    return inputs.get(names.extent("img_in.weight", -1), "Flux")


def unet_context(names: Names) -> int:
    """The width of the text embeddings a UNet attends to: 768, 1024 or 2048; 0 when it has no such
    attention.
    """
    widths = (
        shape[-1] for name, shape in names.items().items() if name.endswith("attn2.to_k.weight") and shape
    )
    return next(widths, 0)


def _edition(channels: int, plain: str, inpaint: str, edit: str) -> str:
    """By input channels: latent alone, latent with mask and masked image, latent with the image to edit."""
    return {9: inpaint, 8: edit}.get(channels, plain)


def _unet(names: Names, *, second_encoder: bool) -> str:
    middle = names.has_any("middle_block.1.", "mid_block.resnets.1.")
    channels = names.extent("input_blocks.0.0.weight", 1) or names.extent("conv_in.weight", 1)
    context = unet_context(names)
    large = second_encoder or context == 2048
    if large:
        small = names.has_any(
            "output_blocks.3.1.transformer_blocks.1", "up_blocks.1.attentions.0.transformer_blocks.1"
        )
        plain = "SDXL" if middle else "SDXL (SSD1B)" if small else "SDXL (Vega)"
        return _edition(channels, plain, "SDXL Inpaint", "SDXL Instruct-Pix2Pix")
    late = names.has_any("output_blocks.7.1", "up_blocks.2.attentions.1")
    if context == 1024:
        wide = names.extent("output_blocks.7.1.transformer_blocks.0.attn1.to_k.weight", -1) == 1024
        plain = "SD 2.x" if middle else "SDXS (09)" if wide else "SD 2.x Tiny UNet"
        return _edition(channels, plain, "SD 2.x Inpaint", plain)
    plain = "SD 1.x" if middle else "SD 1.x Tiny UNet" if late else "SDXS (512-DS)"
    return _edition(channels, plain, "SD 1.x Inpaint", "Instruct-Pix2Pix")
