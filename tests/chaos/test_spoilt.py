"""Numbers that are no picture: NaN, infinity and one colour are found and redone by the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from tests.chaos import doubles

from serving_runs import made, order_of, pixels, settings_for
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Placement, Stage
from tidegate.runtime.gate import Gate
from tidegate.runtime.server import serving
from tidegate.runtime.settings import ModelSettings
from tidegate.runtime.views import JobView

CASES = ((Stage.ENCODE, "nan"), (Stage.DENOISE, "inf"), (Stage.DECODE, "nan"), (Stage.DECODE, "inf"))


@pytest.fixture
def spoil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    return doubles.employ("spoiling", tmp_path, monkeypatch)


@pytest.mark.slow
def test_infinity_in_sampling_and_nan_in_decoding_are_found_and_the_image_is_the_same(
    tmp_path: Path, sd1_tiny: Path, spoil: Callable[[str, int], None]
) -> None:
    asyncio.run(check_cases(tmp_path / "state", sd1_tiny, spoil, CASES[1:3]))


@pytest.mark.chaos
def test_nan_and_infinity_in_any_stage_are_found(
    tmp_path: Path, sd1_tiny: Path, spoil: Callable[[str, int], None]
) -> None:
    asyncio.run(check_cases(tmp_path / "state", sd1_tiny, spoil, CASES))


async def check_cases(
    state: Path, model: Path, spoil: Callable[[str, int], None], cases: tuple[tuple[Stage, str], ...]
) -> None:
    async with serving(settings_for(state, model)) as gate:
        calm = await made(gate, order_of())
        for number, (stage, what) in enumerate(cases):
            spoil(f"{stage}:{what}", 1)
            # A prompt of its own for the encoder, which would not run at all for one that it knows.
            prompt = f"a lighthouse {number}" if stage is Stage.ENCODE else "a lighthouse at dusk"
            job = await made(gate, order_of(prompt=prompt))
            assert doubles.left() == 0, "it was spoilt"
            await check_redone(gate, job, stage)
            if stage is not Stage.ENCODE:
                assert await pixels(gate, job.id) == await pixels(gate, calm.id)


async def check_redone(gate: Gate, job: JobView, stage: Stage) -> None:
    story = "\n".join(gate.story(job.id))
    assert job.phase is JobPhase.DONE, story
    assert f"{stage} failed on the card: the result held NaN or infinity" in story
    # Only the CPU in full precision is a cure; a tile or a budget computes the same numbers again.
    assert job.images[0].executions[stage].placement is Placement.CPU, story


@pytest.mark.slow
def test_one_colour_is_redone_and_given_out_when_it_comes_again(
    tmp_path: Path, sd1_tiny: Path, spoil: Callable[[str, int], None]
) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path / "state", sd1_tiny)) as gate:
            calm = await made(gate, order_of())
            spoil("blank:black", 1)
            once = await made(gate, order_of())
            assert once.phase is JobPhase.DONE
            assert await pixels(gate, once.id) == await pixels(gate, calm.id), "it was redone"
            assert any("the image was of one colour" in line for line in gate.story(once.id))
            spoil("blank:black", 2)
            twice = await made(gate, order_of())
            assert twice.phase is JobPhase.DONE
            assert await pixels(gate, twice.id) != await pixels(gate, calm.id), "someone may want black"
            assert any("one colour" in notice for notice in twice.notices), twice.notices

    asyncio.run(scene())


@pytest.mark.chaos
def test_a_model_whose_weights_are_nan_is_named_and_others_are_made(tmp_path: Path, sd1_tiny: Path) -> None:
    """A broken file is no bad luck: every way gives NaN, and the user is told to look at the file."""
    good = safetensors.numpy.load_file(sd1_tiny.with_name("taesd.safetensors"))
    bad = {name: np.full_like(weights, np.nan) for name, weights in good.items()}
    safetensors.numpy.save_file(bad, tmp_path / "nan.safetensors")
    settings = settings_for(tmp_path / "state", sd1_tiny)
    broken = ModelSettings(
        name="broken", model=str(sd1_tiny), taesd=str(tmp_path / "nan.safetensors"), threads=1
    )
    settings = settings.model_copy(update={"models": (*settings.models, broken)})

    async def scene() -> None:
        async with serving(settings) as gate:
            job = await made(gate, order_of(model="broken"))
            assert job.phase is JobPhase.FAILED, gate.story(job.id)
            assert "Check the model file" in job.message, job.message
            assert "The engine said: " in job.message
            assert (await made(gate, order_of())).phase is JobPhase.DONE

    asyncio.run(scene())
