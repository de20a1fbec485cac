"""A worker that is killed costs time, never the image: what it had computed is taken up by the next one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from relay_runs import Recorder, card_of, changed, run_on, saved, worker_on
from tidegate.core.quantity import GIB
from tidegate.core.stage import Stage
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.runtime.order import ImageOrder
from tidegate.runtime.report import Report
from tidegate.runtime.worker import Patience

STEPS = 4
SAMPLERS = ("euler", "euler_a", "heun", "dpm2", "dpm++2m", "lcm")
SAMPLE = ("euler_a", "dpm++2m")
KILLED = "The worker died with signal 9 (SIGKILL). A new one takes over; finished work is kept."


def watched(order: ImageOrder, card: VirtualCard, state: Path, listener: Recorder) -> tuple[Report, str]:
    """Make the image; returns the report and the hash of the latent that was decoded."""
    latents = []
    disturb = listener.on_stage

    def on_stage(stage: Stage) -> None:
        if stage is Stage.DECODE:
            latents.append(saved(state)[f"latent-{order.seed_of(0)}.safetensors"])
        disturb(stage)

    listener.on_stage = on_stage
    return run_on(card, order, listener), latents[-1]


def check_sampler(sampler: str, order: ImageOrder, folder: Path, state: Path) -> None:
    """Kill the worker after each of its steps; the latent is that of a run in peace, bit for bit."""
    order = changed(order, sampler=sampler, steps=STEPS)
    with card_of(2 * GIB, folder) as card:
        peaceful, latent = watched(order, card, state, Recorder())
        killed_after: list[int] = []

        def kill(stage: Stage, step: int) -> None:
            if stage is Stage.DENOISE and step > max(killed_after, default=0):
                killed_after.append(step)
                os.kill(worker_on(card), signal.SIGKILL)

        listener = Recorder(on_step=kill)
        disturbed, latent_after = watched(order, card, state, listener)
    assert killed_after == list(range(1, STEPS + 1))
    assert KILLED in listener.notices
    assert "Sampling goes on from its tape: the steps on it are not computed again." in listener.notices
    assert latent_after == latent
    assert disturbed.images[0].pixels_sha256 == peaceful.images[0].pixels_sha256
    print(f"{sampler:10s} killed after steps {killed_after}, latent {latent_after[:16]} both times")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLE)
def test_killed_after_each_step(sampler: str, order: ImageOrder, tmp_path: Path, state: Path) -> None:
    check_sampler(sampler, order, tmp_path, state)


@pytest.mark.chaos
@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - set(SAMPLE)))
def test_killed_after_each_step_of_every_sampler(
    sampler: str, order: ImageOrder, tmp_path: Path, state: Path
) -> None:
    check_sampler(sampler, order, tmp_path, state)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGSEGV, "signal 11 (SIGSEGV)"), (signal.SIGABRT, "signal 6 (SIGABRT)")],
    ids=["segmentation fault", "abort"],
)
def test_a_crash_at_decode_is_finished_from_the_latent(
    number: signal.Signals, words: str, order: ImageOrder, tmp_path: Path
) -> None:
    with card_of(2 * GIB, tmp_path) as card:
        crashes = []

        def crash(stage: Stage) -> None:
            if stage is Stage.DECODE and not crashes:
                crashes.append(worker_on(card))
                os.kill(crashes[0], number)

        listener = Recorder(on_stage=crash)
        report = run_on(card, order, listener)
    assert [stage for stage, _, _ in listener.stages] == [
        Stage.ENCODE,
        Stage.DENOISE,
        Stage.DECODE,
        Stage.DECODE,
    ]
    assert f"The worker died with {words}. A new one takes over; finished work is kept." in listener.notices
    assert report.stages[-1].attempts == 2
    assert any(text.startswith("Decode is tried again") for text in listener.notices)


def test_a_stopped_worker_is_noticed_and_replaced(order: ImageOrder, tmp_path: Path) -> None:
    with card_of(2 * GIB, tmp_path) as card:
        stopped = []

        def stop(stage: Stage, step: int) -> None:
            if stage is Stage.DENOISE and not stopped:
                stopped.append(worker_on(card))
                os.kill(stopped[0], signal.SIGSTOP)

        listener = Recorder(on_step=stop)
        report = run_on(card, order, listener, patience=Patience(heartbeat_ms=2000))
        assert card.read().cards[0].used_bytes == 0
    assert [record.attempts for record in report.stages] == [1, 2, 1]
    assert any("it made no progress past its deadline" in text for text in listener.notices)
