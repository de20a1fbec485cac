"""Components come and go without a trace, and what does not fit is refused without harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine_process import SMALL, EngineProcess, tiny_files
from tidegate.core.quantity import GIB, MIB
from tidegate.runtime.cards.virtual import VirtualCard, VirtualSpec

# Pages of the program itself and of model files come and go as the kernel likes: only our own memory counts.
CYCLES = """
model = open_checkpoint()
def own_bytes():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return sum(int(status[name].split()[0]) * 1024 for name in ("RssAnon", "VmSwap"))
for cycle in range(1, arguments["cycles"] + 1):
    for component in ("text_encoder", "diffusion", "vae"):
        for placement in ("card", "cpu"):
            model.load(component, placement)
            model.release(component)
    if cycle in (arguments["settled"], arguments["cycles"]):
        say(own=own_bytes(), loaded=model.loaded(), counted=model.stage_bytes()["card_bytes"])
"""

REFUSED = """
model = open_checkpoint()
wanted = request()
try:
    model.load("diffusion", "card")
except sdstage.OutOfMemory as refusal:
    say(refusal=str(refusal), loaded=model.loaded())
model.load("vae", "card")
latent = np.random.default_rng(1).standard_normal((1, *model.latent_shape(64, 64)), dtype=np.float32)
try:
    model.decode(wanted, latent)
except sdstage.OutOfMemory as refusal:
    say(refusal=str(refusal), loaded=model.loaded())
tiled = digest(model.decode(wanted, latent, tile=4))
again = digest(model.decode(wanted, latent, tile=4))
say(tiled=tiled == again)
model.load("vae", "cpu")
say(whole=digest(model.decode(wanted, latent)))
"""


def assert_no_trace(tmp_path: Path, files: dict[str, str], *, cycles: int, settled: int) -> None:
    with (
        VirtualCard.create_in(tmp_path, VirtualSpec(capacity_bytes=3 * GIB)) as card,
        EngineProcess(CYCLES, ledger=str(card.path), files=files, cycles=cycles, settled=settled) as engine,
    ):
        seen = []
        for said in engine:
            row = card.read().row_of(engine.pid)
            assert row is not None
            assert (said["loaded"], said["counted"], row.holdings[0].used_bytes) == ({}, 0, 0)
            seen.append(said["own"])
        early, late = seen
        assert late - early <= 8 * MIB, f"{(late - early) / MIB:.1f} MiB more after {cycles} cycles"


def test_load_and_release_leave_nothing(tmp_path: Path, synthetic_models: Callable[[str], Path]) -> None:
    assert_no_trace(tmp_path, tiny_files(synthetic_models("sd1-tiny")), cycles=8, settled=3)


@pytest.mark.chaos
def test_load_and_release_leave_nothing_in_four_hundred_cycles(
    tmp_path: Path, synthetic_models: Callable[[str], Path]
) -> None:
    assert_no_trace(tmp_path, tiny_files(synthetic_models("sd1-tiny")), cycles=400, settled=40)


def test_what_does_not_fit_is_refused_and_the_engine_goes_on(
    tmp_path: Path, synthetic_models: Callable[[str], Path]
) -> None:
    files = tiny_files(synthetic_models("sd1-tiny"))
    # Room for the TAESD and a tiled decode (3.4 MB), not for a whole one (6.1 MB).
    with (
        VirtualCard.create_in(tmp_path, VirtualSpec(capacity_bytes=4 * MIB)) as card,
        EngineProcess(REFUSED, ledger=str(card.path), files=files, request=SMALL) as engine,
    ):
        weights, whole, tiled, cpu = engine
        assert "the weights of the diffusion model do not fit" in weights["refusal"]
        assert weights["loaded"] == {}
        assert "bytes were refused on VCARD0" in whole["refusal"]
        assert whole["loaded"] == {"vae": "card"}
        assert tiled["tiled"]
        assert cpu["whole"]
        assert card.read().cards[0].peak_bytes <= 4 * MIB
