"""Bad input is one line with a remedy, exit code 2, no traceback, and no new file. Word for word."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tidegate.cli.main import EXIT_CAPACITY, EXIT_CLIENT, run

FETCH_AGAIN = "Download the file again and compare its size and checksum with the source."
FOLDERS = ("work", "state")


@pytest.fixture
def shelf(tiny: Path, tmp_path: Path) -> Path:
    """A folder with files of every bad kind, and the current folder of the test."""
    work = tmp_path / "work"
    (work / "alone").mkdir(parents=True)
    (work / "alone" / "alone.safetensors").symlink_to(tiny)
    (work / "sound.safetensors").symlink_to(tiny)
    (work / "taesd.safetensors").symlink_to(tiny.with_name("taesd.safetensors"))
    with tiny.open("rb") as file:
        (work / "short.safetensors").write_bytes(file.read(1_000_000))
    (work / "text.safetensors").write_text("This is a letter to a friend.\n", encoding="utf-8")
    (work / "empty.safetensors").touch()
    (work / "garbage.safetensors").write_bytes(os.urandom(7) + b"\xff" + os.urandom(4000))
    write_with_a_wrong_shape(work / "shapes.safetensors", tiny)
    (work / "short.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"\x04")
    (work / "notes.txt").write_text("not a picture", encoding="utf-8")
    Image.effect_noise((64, 64), 50).save(work / "half.png")
    (work / "half.png").write_bytes((work / "half.png").read_bytes()[:900])
    (work / "locked").mkdir()
    (work / "is.pickle.ckpt").write_bytes(b"\x80\x02}q\0.")
    return work


def write_with_a_wrong_shape(path: Path, sound: Path) -> None:
    """The sound checkpoint with its first convolution turned around in the header, and holes for weights."""
    with sound.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header["model.diffusion_model.input_blocks.0.0.weight"]["shape"] = [320, 3, 4, 3]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + sound.stat().st_size - 8 - length)


def files_in(folder: Path) -> set[Path]:
    return {path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file()}


# What is typed after `tidegate image`, and the one line that is answered.
TABLE = {
    "width": ("x --size 63x64", "The width 63 is not a multiple of 64. Use 64."),
    "height": ("x --size 64x200", "The height 200 is not a multiple of 64. Use 192 or 256."),
    "a billion pixels": (
        "x --size 31623x31623",
        "31623x31623 is 1000014129 pixels, and at most 67108864 are made. "
        "Use a smaller --size, such as 1024x1024.",
    ),
    "no pixels": ("x --size 0x64", "0x64 is an empty image. Write a size such as 512x512."),
    "no size": ("x --size big", "'big' is no size. Write width x height in pixels, such as 512x512."),
    "zero steps": ("x --steps 0", "--steps 0 is out of range. Use a number from 1 to 1000."),
    "steps in words": (
        "x --steps many",
        "Invalid value for '--steps': Input should be a valid integer, unable to parse string as an integer. "
        "Try: tidegate --help",
    ),
    "zero images": ("x --batch 0", "--batch 0 is out of range. Use a number from 1 to 100."),
    "cfg that is no number": ("x --cfg nan", "--cfg nan is out of range. Use a number from 0 to 100."),
    "seed": ("x --seed -2", "--seed -2 is out of range. Use a number from 0 to 4294967295."),
    "sampler": ("x --size 64x64 --sampler eulr_a", "There is no sampler 'eulr_a'. Did you mean euler_a?"),
    "scheduler": ("x --size 64x64 --scheduler karas", "There is no scheduler 'karas'. Did you mean karras?"),
    "no prompt": ("--steps 3", 'There is no prompt. Say what to see: tidegate image "a lighthouse at dusk"'),
    "nothing to resume": (
        "--resume",
        'There is nothing to resume. Start with: tidegate image "a lighthouse at dusk" -o out.png',
    ),
    "option": (
        "x --stepz 3",
        "No such option: --stepz (Possible options: --seed, --size, --steps). Try: tidegate --help",
    ),
    "device": (
        "x --device warp",
        "There is no device 'warp'. Write auto, cpu, cuda:0, vulkan:0, rocm:0 or virtual:3GiB.",
    ),
    "card size": (
        "x --device virtual:3Gigs",
        "'3Gigs' is no card size. Write a number and a unit, such as 3GiB or 512MiB.",
    ),
    "model name": (
        "x --model nowhere.safetensors",
        "There is no model named 'nowhere.safetensors' in MODELS. "
        "Give the path of a safetensors or GGUF file, or put one into the models folder.",
    ),
    "truncated safetensors": (
        "x --model short.safetensors",
        "short.safetensors is cut short: its header declares 892969296 bytes, the file has 1000000 "
        f"(891969296 missing). {FETCH_AGAIN}",
    ),
    "corrupt safetensors": (
        "x --model garbage.safetensors",
        "garbage.safetensors is not a model file: it is of an unknown binary format. "
        "Give a safetensors or GGUF file.",
    ),
    "truncated GGUF": ("x --model short.gguf", f"short.gguf is cut short inside its header. {FETCH_AGAIN}"),
    "text file": (
        "x --model text.safetensors",
        "text.safetensors is not a model file: it is a text file. Give a safetensors or GGUF file.",
    ),
    "empty file": ("x --model empty.safetensors", f"empty.safetensors is empty. {FETCH_AGAIN}"),
    "pickle": (
        "x --model ./is.pickle.ckpt",
        "is.pickle.ckpt is a PyTorch pickle, which can run code when it is opened and is not supported. "
        "Use a safetensors or GGUF version of this model.",
    ),
    "wrong shapes": (
        "x --model shapes.safetensors",
        "shapes.safetensors is not a sound SD 1.x Tiny UNet model: tensor "
        "'model.diffusion_model.input_blocks.0.0.weight' has the shape 320x3x4x3, expected 320x4x3x3. "
        f"{FETCH_AGAIN}",
    ),
    "missing VAE": (
        "x --model alone/alone.safetensors",
        "alone/alone.safetensors holds no VAE, and there is none for SD 1.x Tiny UNet (4 latent channels) "
        "beside it. Give one with --vae FILE or --taesd FILE, or put it into the same folder.",
    ),
    "a checkpoint as VAE": (
        "x --vae sound.safetensors",
        "WORK/sound.safetensors was given as --vae, but it is an SD 1.x Tiny UNet checkpoint. "
        "Give a VAE with --vae.",
    ),
    "two models": (
        "x --model a --diffusion-model b",
        "--model and --diffusion-model were both given. "
        "Give --model for a whole checkpoint, --diffusion-model for its diffusion part alone.",
    ),
    "picture that is none": (
        "x --init notes.txt",
        "The picture WORK/notes.txt cannot be read: it is not a picture. "
        "Give a PNG, JPEG or WebP file with --init.",
    ),
    "picture that is not there": (
        "x --init no.png",
        "The picture WORK/no.png cannot be read: there is no such file. "
        "Give a PNG, JPEG or WebP file with --init.",
    ),
    "damaged picture": (
        "x --init half.png",
        "The picture WORK/half.png cannot be read: it is damaged. Give a PNG, JPEG or WebP file with --init.",
    ),
    "output folder": (
        "x -o nowhere/out.png",
        "The image cannot be written to WORK/nowhere/out.png: its folder does not exist. "
        "Choose another place with -o.",
    ),
    "output is a folder": (
        "x -o locked",
        "The image cannot be written to WORK/locked: it is a folder. Choose another place with -o.",
    ),
    "output is no PNG": (
        "x -o out.jpg",
        "out.jpg is not the name of a PNG file, and only PNG is written. Use -o out.png.",
    ),
    "a card that is not there": (
        "x --size 64x64 --device cuda:63",
        "The engine does not see cuda:63. It sees no card at all. "
        "Use --device cpu, or build the engines for this card, such as: CMAKE_ARGS=-DSD_CUDA=ON make setup",
    ),
}


@pytest.mark.parametrize(("typed", "line"), TABLE.values(), ids=list(TABLE))
def test_bad_input_is_one_line(
    typed: str,
    line: str,
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(shelf)
    monkeypatch.setenv("TIDEGATE_MODELS", str(tmp_path / "models"))
    arguments = typed.split()
    if "--model" not in arguments and "--resume" not in arguments:
        arguments += ["--model", "sound.safetensors"]
    before = files_in(tmp_path)
    code = run(["image", *arguments])
    out, err = capfd.readouterr()
    expected = line.replace("WORK", str(shelf)).replace("MODELS", str(tmp_path / "models"))
    assert (code, out, err) == (EXIT_CLIENT, "", f"tidegate: {expected}\n")
    assert files_in(tmp_path) == before


def test_too_little_ram_is_one_clear_error(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shelf)
    before = files_in(tmp_path)
    typed = "x --model sound.safetensors --size 64x64 --device cpu --ram 100MiB"
    assert run(["image", *typed.split()]) == EXIT_CAPACITY
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("tidegate: There is not enough memory for encode: on the CPU: needs 236 MiB of RAM")
    assert files_in(tmp_path) == before


def test_the_program_itself_ends_with_the_same_line_and_code(shelf: Path) -> None:
    code = "import sys; from tidegate.cli.main import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", code, "image", "x", "--steps", "0"],
        cwd=shelf,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (EXIT_CLIENT, "")
    assert ended.stderr == "tidegate: --steps 0 is out of range. Use a number from 1 to 1000.\n"
