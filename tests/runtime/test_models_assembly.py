"""Finding models by what a user types, completing an image model from its neighbours, and refusing
misfits.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidegate.core.faults import ClientError
from tidegate.runtime.models.assembly import assemble
from tidegate.runtime.models.fingerprint import content_sha256, fingerprint_of
from tidegate.runtime.models.opening import read_model
from tidegate.runtime.models.shelf import open_model, resolve, scan
from tidegate.synth.layouts import safetensors_layout

Shapes = dict[str, tuple[int, ...]]
TEXT: Shapes = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (4, 768)}
UNET: Shapes = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.middle_block.1.norm.weight": (4,),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
}
SD3: Shapes = {
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4, 4),
    "model.diffusion_model.x_embedder.proj.weight": (1536, 16, 2, 2),
}
SDXL: Shapes = {
    **UNET,
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (4, 768),
    "conditioner.embedders.1.model.token_embedding.weight": (4, 1280),
}
VAE: Shapes = {"decoder.conv_in.weight": (512, 4, 3, 3)}
VAE16: Shapes = {"decoder.conv_in.weight": (512, 16, 3, 3)}
TAESD: Shapes = {"decoder.layers.0.weight": (64, 4, 3, 3)}
CLIP_L: Shapes = {"text_model.embeddings.token_embedding.weight": (4, 768)}


def put(folder: Path, name: str, shapes: Shapes) -> Path:
    """A sparse file with these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = safetensors_layout(list(shapes.items()), "f16")
    path = folder / f"{name}.safetensors"
    path.write_bytes(layout.header)
    os.truncate(path, layout.size_bytes)
    return path


def refusal(path: Path, given: dict[str, Path] | None = None) -> ClientError:
    with pytest.raises(ClientError) as caught:
        assemble(open_model(path), given)
    return caught.value


def roles(path: Path, given: dict[str, Path] | None = None) -> dict[str, str]:
    return {role: Path(file).name for role, file in assemble(open_model(path), given).files.items()}


def test_a_checkpoint_without_vae_takes_the_one_beside_it(tmp_path: Path) -> None:
    path = put(tmp_path, "tiny", TEXT | UNET)
    put(tmp_path, "taesd", TAESD)
    found = assemble(open_model(path))
    assert (found.files, found.paired) == (
        {"model": str(path), "taesd": str(tmp_path / "taesd.safetensors")},
        ("taesd",),
    )


def test_a_vae_goes_before_a_taesd_and_an_equal_name_before_all(tmp_path: Path) -> None:
    path = put(tmp_path, "tiny", TEXT | UNET)
    put(tmp_path, "taesd", TAESD)
    put(tmp_path, "b", VAE)
    assert roles(path) == {"model": path.name, "vae": "b.safetensors"}
    put(tmp_path, "tiny.taesd", TAESD)
    assert roles(path) == {"model": path.name, "taesd": "tiny.taesd.safetensors"}


def test_a_vae_is_also_found_in_a_folder_of_its_own(tmp_path: Path) -> None:
    path = put(tmp_path / "checkpoints", "tiny", TEXT | UNET)
    put(tmp_path / "vae", "mse", VAE)
    assert roles(path) == {"model": path.name, "vae": "mse.safetensors"}


@pytest.mark.parametrize(
    ("shapes", "decoder", "name"),
    [
        (TEXT | UNET, VAE16, "vae"),
        (TEXT | UNET, VAE, "sdxl_vae"),
        (SDXL, VAE, "sd15-vae-ft-mse"),
        (SDXL, TAESD, "taesd"),
    ],
)
def test_a_decoder_for_another_family_is_not_taken(
    tmp_path: Path, shapes: Shapes, decoder: Shapes, name: str
) -> None:
    path = put(tmp_path, "image", shapes)
    put(tmp_path, name, decoder)
    assert refusal(path).code == "vae_missing"


def test_sdxl_takes_the_decoders_named_for_it(tmp_path: Path) -> None:
    path = put(tmp_path, "image", SDXL)
    put(tmp_path, "taesdxl", TAESD)
    assert roles(path) == {"model": path.name, "taesd": "taesdxl.safetensors"}


def test_a_damaged_neighbour_does_not_matter(tmp_path: Path) -> None:
    path = put(tmp_path, "tiny", TEXT | UNET)
    (tmp_path / "a.safetensors").write_bytes(b"text")
    put(tmp_path, "taesd", TAESD)
    assert "taesd" in roles(path)


def test_without_any_vae_one_sentence_says_so(tmp_path: Path) -> None:
    path = put(tmp_path, "tiny", TEXT | UNET)
    fault = refusal(path)
    assert str(fault) == (
        f"{path} holds no VAE, and there is none for SD 1.x (4 latent channels) beside it."
        " Give one with --vae FILE or --taesd FILE, or put it into the same folder."
    )


def test_what_is_given_is_used_and_must_fit(tmp_path: Path) -> None:
    path, other = put(tmp_path, "tiny", TEXT | UNET), tmp_path / "other"
    assert roles(path, {"vae": put(other, "mine", VAE)}) == {"model": path.name, "vae": "mine.safetensors"}
    wide = put(other, "wide", VAE16)
    assert str(refusal(path, {"vae": wide})) == (
        f"{wide} decodes 16 latent channels, but SD 1.x makes 4. Give a VAE or TAESD made for SD 1.x."
    )
    tiny = put(other, "small", TAESD)
    assert (
        str(refusal(path, {"vae": tiny}))
        == f"{tiny} was given as --vae, but it is a TAESD. Give a VAE with --vae."
    )
    assert str(refusal(tiny)) == (
        f"{tiny} is not an image model: it is a TAESD."
        " Give the checkpoint or the diffusion model with --model."
    )


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    wrong = put(tmp_path, "wrong", TEXT | UNET | {"model.diffusion_model.out.2.weight": (4, 320, 1, 1)})
    assert str(refusal(wrong)) == (
        f"{wrong} is not a sound SD 1.x model: tensor 'model.diffusion_model.out.2.weight' has the shape"
        " 4x320x1x1, expected 4x320x3x3."
        " Download the file again and compare its size and checksum with the source."
    )
    path = put(tmp_path, "sd3", SD3 | {"model.diffusion_model.x_embedder.proj.weight": (1536, 4, 2, 2)})
    assert "expected anyx16x2x2" in refusal(path).message


def test_a_diffusion_model_needs_its_text_encoders(tmp_path: Path) -> None:
    path = put(tmp_path, "unet", UNET)
    fault = refusal(path)
    assert (fault.code, str(fault)) == (
        "text_encoder_missing",
        f"{path} holds no text encoder. Give it with --clip-l FILE.",
    )
    given = {"clip_l": put(tmp_path, "clip", CLIP_L), "vae": put(tmp_path, "vae", VAE)}
    assert roles(path, given) == {
        "diffusion_model": path.name,
        "clip_l": "clip.safetensors",
        "vae": "vae.safetensors",
    }


def test_sd3_is_content_with_one_of_its_text_encoders(tmp_path: Path) -> None:
    path = put(tmp_path, "sd3", SD3)
    vae, clip = put(tmp_path, "ae", VAE16), put(tmp_path, "clip", CLIP_L)
    # A VAE called just `ae` is Flux's; given by hand it is taken at its word.
    assert refusal(path, {"clip_l": clip}).code == "vae_missing"
    assert set(roles(path, {"clip_l": clip, "vae": vae})) == {"diffusion_model", "clip_l", "vae"}


def test_a_folder_is_scanned_with_its_bad_files(tmp_path: Path) -> None:
    put(tmp_path / "deep" / "er", "tiny", TEXT | UNET)
    put(tmp_path, "taesd", TAESD)
    put(tmp_path / ".hidden", "no", VAE)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "loop").symlink_to(tmp_path)
    shelf = scan(tmp_path)
    assert [model.name for model in shelf.models] == ["tiny", "taesd"]
    assert [(path.name, fault.code) for path, fault in shelf.refused] == [("bad.gguf", "model_truncated")]
    assert shelf.complete


def test_a_model_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    path = put(tmp_path / "deep", "Dream-v5", TEXT | UNET)
    for value in (str(path), "Dream-v5", "dream-V5", "Dream-v5.safetensors", "deep/Dream-v5.safetensors"):
        assert resolve(value, models_folder=tmp_path).path == path


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("drem-v5", "There is no model named 'drem-v5' in {}. Did you mean 'Dream-v5'?"),
        ("zzz", "There is no model named 'zzz' in {}. Known models: Dream-v5, other."),
        ("{}/Dream-v6.safetensors", "There is no model named 'Dream-v6.safetensors' in {}. Did you mean"
         " 'Dream-v5.safetensors'?"),
        ("{}/q.gguf", "{}/q.gguf: there is no such file. Check the path."),
        ("a/\0", "'a/\\x00': there is no such file. Check the path."),
    ],
)  # fmt: skip
def test_an_unknown_model_is_answered_with_near_names(tmp_path: Path, value: str, said: str) -> None:
    put(tmp_path, "Dream-v5", TEXT | UNET)
    put(tmp_path, "other", VAE)
    with pytest.raises(ClientError) as caught:
        resolve(value.replace("{}", str(tmp_path)), models_folder=tmp_path)
    assert (caught.value.code, str(caught.value)) == ("model_not_found", said.replace("{}", str(tmp_path)))


def test_an_empty_models_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as caught:
        resolve("x" * 5000, models_folder=tmp_path)
    assert (
        caught.value.remedy
        == "Give the path of a safetensors or GGUF file, or put one into the models folder."
    )
    assert len(caught.value.message) < 300


def test_a_fingerprint_notices_changes_that_can_be_seen_cheaply(tmp_path: Path) -> None:
    path = put(tmp_path, "a", {"w": (1024, 1024)})
    first = fingerprint_of(read_model(path))
    assert fingerprint_of(read_model(path)) == first
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = fingerprint_of(read_model(path))
    assert (second.text != first.text, second.shape_text == first.shape_text) == (True, True)
    os.utime(path, ns=(0, 0))
    assert fingerprint_of(read_model(path)).text != second.text
    assert content_sha256(path) != content_sha256(put(tmp_path, "b", {"w": (1024, 1024)}))


def test_a_file_that_went_away_is_said_so(tmp_path: Path) -> None:
    file = read_model(put(tmp_path, "a", {"w": (4,)}))
    file.path.unlink()
    with pytest.raises(ClientError, match=r"cannot be read: No such file or directory\."):
        fingerprint_of(file)
