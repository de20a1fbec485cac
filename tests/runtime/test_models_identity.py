"""What a file is, told by its tensors: every kind and family by the tensors that mark it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.runtime.models.identity import Kind, identify
from tidegate.runtime.models.model_file import Format, ModelFile, Tensor
from tidegate.runtime.models.signatures import FAMILIES

Shapes = dict[str, tuple[int, ...]]
D = "model.diffusion_model."
SD1_UNET: Shapes = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "middle_block.1.norm.weight": (1280,),
    "output_blocks.7.1.norm.weight": (640,),
}
SD1_TEXT: Shapes = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768)}
VAE: Shapes = {"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3)}


def file_of(shapes: Shapes, *, architecture: str = "") -> ModelFile:
    tensors = tuple(Tensor(name, "f16", shape, 0, 0) for name, shape in shapes.items())
    metadata = {"general.architecture": architecture} if architecture else {}
    form = Format.GGUF if architecture else Format.SAFETENSORS
    return ModelFile(Path("x"), form, 0, 0, tensors, metadata)


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def without(shapes: Shapes, *starts: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(starts)}


def with_inputs(channels: int) -> Shapes:
    return {**SD1_UNET, "input_blocks.0.0.weight": (320, channels, 3, 3)}


def with_context(width: int, shapes: Shapes = SD1_UNET) -> Shapes:
    return {**shapes, "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width)}


LATE_1024 = {"output_blocks.7.1.transformer_blocks.0.attn1.to_k.weight": (1024, 1024)}
WAN: Shapes = {"blocks.0.cross_attn.norm_k.weight": (1,)}
FAMILY_MARKS: list[tuple[str, Shapes]] = [
    ("SD 1.x", SD1_UNET),
    ("SD 1.x Inpaint", with_inputs(9)),
    ("Instruct-Pix2Pix", with_inputs(8)),
    ("SD 1.x Tiny UNet", without(SD1_UNET, "middle_block")),
    ("SDXS (512-DS)", without(SD1_UNET, "middle_block", "output_blocks.7")),
    ("SD 2.x", with_context(1024)),
    ("SD 2.x Inpaint", with_context(1024, with_inputs(9))),
    ("SD 2.x Tiny UNet", with_context(1024, without(SD1_UNET, "middle_block"))),
    ("SDXS (09)", with_context(1024, {**without(SD1_UNET, "middle_block"), **LATE_1024})),
    ("SDXL", with_context(2048)),
    ("SDXL Inpaint", with_context(2048, with_inputs(9))),
    ("SDXL Instruct-Pix2Pix", with_context(2048, with_inputs(8))),
    ("SDXL (Vega)", with_context(2048, without(SD1_UNET, "middle_block"))),
    ("SVD", {**SD1_UNET, "input_blocks.8.0.time_mixer.mix_factor": (1,)}),
    ("SD3.x", {"joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}),
    ("Flux", {"double_blocks.0.img_attn.qkv.weight": (9216, 3072), "img_in.weight": (3072, 64)}),
    ("Flux Fill", {"double_blocks.0.img_attn.qkv.weight": (9216, 3072), "img_in.weight": (3072, 384)}),
    ("Flux Control", {"double_blocks.0.img_attn.qkv.weight": (9216, 3072), "img_in.weight": (3072, 128)}),
    ("Flex.2", {"double_blocks.0.img_attn.qkv.weight": (9216, 3072), "img_in.weight": (3072, 196)}),
    ("Flux.2", {"double_stream_modulation_img.lin.weight": (1,), "single_blocks.47.linear1.weight": (1,)}),
    ("Flux.2 klein", {"double_stream_modulation_img.lin.weight": (1, 1), "double_blocks.0.a": (1,)}),
    ("Chroma Radiance", {"nerf_final_layer_conv.conv.weight": (1, 1), "double_blocks.0.a": (1,)}),
    ("Ovis Image", {"double_blocks.0.img_mlp.gate_proj.weight": (1, 1)}),
    ("Qwen Image", {"transformer_blocks.0.img_mod.1.weight": (1, 1)}),
    ("Z-Image", {"cap_embedder.0.weight": (1, 1)}),
    ("Ernie Image", {"layers.0.adaLN_sa_ln.weight": (1,)}),
    ("Anima", {"net.llm_adapter.blocks.0.cross_attn.q_proj.weight": (1, 1)}),
    ("Wan 2.x", {**WAN, "patch_embedding.weight": (1536, 16, 1, 2, 2)}),
    ("Wan 2.2 I2V", {**WAN, "patch_embedding.weight": (5120, 36, 1, 2, 2)}),
    ("Wan 2.2 TI2V", {**WAN, "patch_embedding.weight": (3072, 48, 1, 2, 2)}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "shapes"), FAMILY_MARKS, ids=[family for family, _ in FAMILY_MARKS])
def test_every_family_is_known_with_its_prefix(family: str, shapes: Shapes) -> None:
    found = identify(file_of(under(D, shapes)))
    assert (found.kind, found.family, found.components) == (Kind.DIFFUSION, family, ("diffusion",))
    assert found.latent_channels_count == FAMILIES[family].vae_channels_count


@pytest.mark.parametrize(
    "family", ["SD 1.x", "SDXL", "SD3.x", "Flux", "Wan 2.x", "Qwen Image", "Z-Image", "Anima"]
)
def test_a_diffusion_model_without_prefix_is_known(family: str) -> None:
    found = identify(file_of(dict(FAMILY_MARKS)[family]))
    assert (found.kind, found.family) == (Kind.DIFFUSION, family)


def test_the_components_of_a_checkpoint() -> None:
    whole = {**under(D, SD1_UNET), **SD1_TEXT, **under("first_stage_model.", VAE)}
    found = identify(file_of(whole))
    assert found.kind is Kind.CHECKPOINT
    assert found.components == ("text_encoder", "diffusion", "vae")
    assert found.encoders == ("clip_l",)
    assert found.words == "an SD 1.x checkpoint"
    assert identify(file_of(without(whole, "first_stage_model."))).components == ("text_encoder", "diffusion")
    assert identify(file_of(without(whole, "cond_stage_model."))).components == ("diffusion", "vae")


def test_a_second_text_encoder_makes_it_sdxl() -> None:
    second = {"conditioner.embedders.1.model.token_embedding.weight": (49408, 1280)}
    first = {"conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768)}
    found = identify(file_of({**under(D, with_context(2048)), **first, **second}))
    assert (found.family, found.encoders) == ("SDXL", ("clip_l", "clip_g"))


TOKENS = "text_model.embeddings.token_embedding.weight"
KINDS: list[tuple[Kind, Shapes, str, str]] = [
    (Kind.VAE, VAE, "", "a VAE"),
    (Kind.VAE, under("first_stage_model.", VAE), "", "a VAE"),
    (Kind.TAESD, {"decoder.layers.0.weight": (64, 4, 3, 3)}, "", "a TAESD"),
    (Kind.TAESD, {"decoder.1.weight": (64, 16, 3, 3)}, "", "a TAESD"),
    (Kind.CLIP_L, {TOKENS: (49408, 768)}, "", "a CLIP-L text encoder"),
    (Kind.CLIP_G, {TOKENS: (49408, 1280)}, "", "a CLIP-G text encoder"),
    (Kind.T5XXL, {"encoder.block.0.layer.0.SelfAttention.q.weight": (9, 9)}, "", "a T5-XXL text encoder"),
    (Kind.T5XXL, {"enc.blk.0.attn_q.weight": (9, 9)}, "t5encoder", "a T5-XXL text encoder (t5encoder)"),
    (Kind.LLM, {"token_embd.weight": (9,), "blk.0.attn_q.weight": (9,)}, "qwen3", "a language model (qwen3)"),
    (Kind.LLM, {"model.layers.0.self_attn.q_proj.weight": (9, 9)}, "", "a language model"),
    (Kind.MMPROJ, {"v.blk.0.ln1.weight": (9,), "mm.0.weight": (9,)}, "clip", "a multimodal projector (clip)"),
    (Kind.LORA, {"lora_unet_mid_block.lora_down.weight": (4, 320)}, "", "a LoRA"),
    (Kind.LORA, under(D, {"input_blocks.1.0.lora_A.weight": (4, 320)}), "", "a LoRA"),
    (Kind.CONTROLNET, {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "", "a ControlNet"),
    (Kind.EMBEDDING, {"emb_params": (2, 768)}, "", "a textual inversion"),
    (Kind.EMBEDDING, {"clip_l": (2, 768), "clip_g": (2, 1280)}, "", "a textual inversion"),
    (Kind.UPSCALER, {"body.0.rdb1.conv1.weight": (32, 64, 3, 3)}, "", "an upscaler"),
    (Kind.UNKNOWN, {"whatever": (1,)}, "", "a model of an unknown kind"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shapes", "architecture", "words"), KINDS)
def test_other_kinds(kind: Kind, shapes: Shapes, architecture: str, words: str) -> None:
    found = identify(file_of(shapes, architecture=architecture))
    assert (found.kind, found.words) == (kind, words)


def test_the_latent_channels_of_decoders() -> None:
    assert identify(file_of({"decoder.conv_in.weight": (512, 16, 3, 3)})).latent_channels_count == 16
    assert identify(file_of({"decoder.layers.0.weight": (64, 16, 3, 3)})).latent_channels_count == 16
