"""Whole images: batches, pictures to start from, reports, and what a card's own costs do to a plan."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from relay_runs import Recorder, card_of, changed, order_for, placements, run_on
from tidegate.cli.options import order_of
from tidegate.core.faults import WorkerError
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Stage
from tidegate.runtime import oneshot
from tidegate.runtime.order import ImageOrder, Wish


def pixels_of(path: Path) -> str:
    with Image.open(path) as picture:
        return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def test_an_image_of_a_batch_is_the_image_of_its_seed(tiny: Path, tmp_path: Path) -> None:
    batch = oneshot.make(order_for(tiny, tmp_path / "batch.png", count=2), Recorder())
    alone = oneshot.make(changed(order_for(tiny, tmp_path / "alone.png"), seed=8), Recorder())
    assert [image.seed for image in batch.images] == [7, 8]
    assert batch.images[1].pixels_sha256 == alone.images[0].pixels_sha256 != batch.images[0].pixels_sha256
    assert [pixels_of(image.path) for image in batch.images] == [
        image.pixels_sha256 for image in batch.images
    ]
    loads = [(str(record.stage), record.image, record.load_ms > 0) for record in batch.stages]
    assert loads == [
        ("encode", None, True),
        ("denoise", 0, True), ("denoise", 1, False),
        ("decode", 0, True), ("decode", 1, False),
    ]  # fmt: skip
    for record in batch.stages:
        assert record.predicted_bytes == record.observed_peak_bytes, record


def test_a_picture_to_start_from(tiny: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "init.png")
    wish = Wish(
        prompt="dusk", model=str(tiny), width=64, height=64, steps=4, seed=3, threads=2, device="cpu",
        init=str(tmp_path / "init.png"), strength=0.5, output=str(tmp_path / "out.png"),
    )  # fmt: skip
    order = order_of(wish, resumes=False)
    on_cpu = oneshot.make(order, Recorder())
    with card_of(2 * GIB, tmp_path) as card:
        on_card = run_on(card, order)
    assert [str(record.stage) for record in on_card.stages] == ["encode", "encode_image", "denoise", "decode"]
    for record in on_card.stages + on_cpu.stages:
        assert record.predicted_bytes == record.observed_peak_bytes, record
    assert on_card.images[0].pixels_sha256 == on_cpu.images[0].pixels_sha256
    other = oneshot.make(order_of(_with(wish, strength=0.9), resumes=False), Recorder())
    assert other.images[0].pixels_sha256 != on_cpu.images[0].pixels_sha256
    with Image.open(tmp_path / "out.png") as picture:
        assert "Denoising strength: 0.9" in picture.text["parameters"]


def _with(wish: Wish, **changes: object) -> Wish:
    return Wish(**{name: changes.get(name, getattr(wish, name)) for name in Wish.__struct_fields__})


def test_the_report_is_what_programs_were_promised(order: ImageOrder, tmp_path: Path) -> None:
    with card_of(700 * MIB, tmp_path) as card:
        told = json.loads(json.dumps(run_on(card, order).data()))
    assert {"stages", "card", "recipe", "pixels_sha256", "notices"} <= told.keys()
    for stage in told["stages"]:
        assert {"stage", "placement", "mode", "ms", "attempts"} <= stage.keys()
        assert {"predicted_bytes", "observed_peak_bytes"} <= stage.keys()
    assert told["card"]["capacity_bytes"] == 700 * MIB
    assert max(stage["observed_peak_bytes"] for stage in told["stages"]) == told["card"]["peak_bytes"]
    assert told["pixels_sha256"] == pixels_of(order.outputs[0])
    assert told["recipe"]["stages"].keys() == {"encode", "denoise", "decode"}
    assert told["notices"] == [
        "The text encoder of this job gives up 235 MiB, because denoise needs 620 MiB on the card."
    ]


def test_a_model_that_nobody_named_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "models"
    shelf.mkdir()
    for file in (tiny, tiny.with_name("taesd.safetensors")):
        (shelf / file.name).symlink_to(file)
    monkeypatch.setenv("TIDEGATE_MODELS", str(shelf))
    wish = Wish(prompt="x", output=str(tmp_path / "out.png"), width=64, height=64, steps=1, device="cpu")
    report = oneshot.make(order_of(wish, resumes=False), Recorder())
    assert report.notices == [f"No model was named, so the first one found is used: {shelf / tiny.name}"]
    named = order_of(msgspec.structs.replace(wish, model=str(tiny)), resumes=False)
    assert not named.notice


def test_context_and_rounding_of_a_card_are_part_of_the_plan(order: ImageOrder, tmp_path: Path) -> None:
    with card_of(1200 * MIB, tmp_path, granularity_bytes=2 * MIB, context_bytes=300 * MIB) as card:
        report = run_on(card, order)
        reading = card.read()
    assert reading.cards[0].refused_count == 0, "no plan asked for more than there was"
    assert placements(report).startswith("card card")
    for record in report.stages:
        assert record.predicted_bytes == record.observed_peak_bytes, record
        assert record.observed_peak_bytes % (2 * MIB) == 0


def test_a_neighbour_who_takes_memory_in_the_middle_changes_the_plan(
    order: ImageOrder, tmp_path: Path
) -> None:
    with card_of(2 * GIB, tmp_path) as card:

        def take(stage: Stage, step: int) -> None:
            if stage is Stage.DENOISE and step == 1:  # the compute buffer is there by then
                card.set_foreign(2 * GIB - card.read().cards[0].tenants_bytes)

        listener = Recorder(on_step=take)
        report = run_on(card, order, listener)
        reading = card.read()
    assert placements(report) == "card card card"
    assert "gives up" in " ".join(listener.notices), "the finished diffusion model makes room for the VAE"
    assert reading.cards[0].peak_bytes <= 2 * GIB


def patched(tiny: Path, folder: Path, name: str, value: bytes) -> Path:
    """The model with the same weights, beside a TAESD in which every tensor called `name` is of one value."""
    with tiny.with_name("taesd.safetensors").open("rb") as file:
        data = bytearray(file.read())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    for tensor, facts in header.items():
        if tensor.endswith(name):
            start, end = (8 + length + offset for offset in facts["data_offsets"])
            data[start:end] = value * ((end - start) // len(value))
    (folder / "model.safetensors").symlink_to(tiny)
    (folder / "taesd.safetensors").write_bytes(data)
    return folder / "model.safetensors"


def test_an_image_of_one_colour_is_made_twice_and_delivered(tiny: Path, tmp_path: Path) -> None:
    model = patched(tiny, tmp_path, "decoder.layers.18.weight", b"\0\0")
    listener = Recorder()
    report = oneshot.make(order_for(model, tmp_path / "out.png"), listener)
    assert listener.notices[-1] == (
        "The image is of one colour. It was made twice in different ways with the same result."
    )
    assert report.stages[-1].attempts == 2
    with Image.open(tmp_path / "out.png") as picture:
        assert len(picture.getcolors() or ()) == 1


def test_weights_that_are_not_numbers_are_one_clear_error(tiny: Path, tmp_path: Path) -> None:
    model = patched(tiny, tmp_path, "decoder.layers.18.weight", b"\xff\x7e")
    with pytest.raises(WorkerError) as told, card_of(2 * GIB, tmp_path) as card:
        run_on(card, order_for(model, tmp_path / "out.png"))
    assert told.value.message.startswith("decode failed")
    assert "the result held NaN or infinity" in told.value.message
    assert not (tmp_path / "out.png").exists()


def test_an_order_has_one_key_on_every_device(order: ImageOrder) -> None:
    assert replace(order, device="virtual:3GiB", threads=1, resumes=True).key == order.key
    assert changed(order, seed=8).key != order.key
