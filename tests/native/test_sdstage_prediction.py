"""What a dry run predicts is what the virtual card is charged, to the byte, seen from another process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine_process import SMALL, EngineProcess, tiny_files
from tidegate.core.quantity import GIB, MIB
from tidegate.runtime.cards.virtual import Preset, VirtualCard, VirtualSpec

EVERY_STAGE = """
model = open_checkpoint()
wanted = request(steps=1)
noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
latent = np.random.default_rng(1).standard_normal((1, *model.latent_shape(64, 64)), dtype=np.float32)
embeddings = None
for placement, budget_bytes in arguments["placements"]:
    for stage, component, tile in (
        ("encode", "text_encoder", 0), ("denoise", "diffusion", 0), ("decode", "vae", 0),
        ("decode", "vae", 4), ("encode_image", "vae", 0),
    ):
        predicted = model.predict(stage, wanted, placement, tile=tile, budget_bytes=budget_bytes)
        model.reset_peaks()
        say(about_to="run")
        model.load(component, placement, budget_bytes=budget_bytes, encoder=stage == "encode_image")
        match stage:
            case "encode": embeddings = model.encode(wanted)
            case "denoise": model.denoise(wanted, embeddings)
            case "decode": model.decode(wanted, latent, tile=tile)
            case "encode_image": model.encode_image(wanted, noise)
        counted = model.stage_bytes()
        say(stage=stage, placement=placement, tile=tile, counted_ram=counted["ram_peak_bytes"],
            card=predicted.card_peak_bytes, ram=predicted.ram_peak_bytes,
            weights=predicted.weights_bytes, compute=predicted.compute_bytes)
        model.release(component)
"""


@pytest.mark.parametrize("preset", list(Preset))
def test_predicted_is_observed(
    tmp_path: Path, synthetic_models: Callable[[str], Path], preset: Preset
) -> None:
    spec = VirtualSpec(capacity_bytes=3 * GIB, preset=preset)
    files = tiny_files(synthetic_models("sd1-tiny"))
    placements = [("card", 0), ("cpu", 0), ("stream", 0), ("stream", 100 * MIB)]
    compared = 0
    with (
        VirtualCard.create_in(tmp_path, spec) as card,
        EngineProcess(
            EVERY_STAGE, ledger=str(card.path), files=files, request=SMALL, placements=placements
        ) as engine,
    ):
        for said in engine:
            if "about_to" in said:
                card.reset_peaks()
                continue
            row = card.read().row_of(engine.pid)
            # The footprint is of the buffers; context and pool are the card descriptor's.
            observed = 0 if row is None else row.holdings[0].buffers_peak_bytes
            assert (said["card"], said["ram"]) == (observed, said["counted_ram"]), said
            expected = {"card": said["card"], "cpu": said["ram"], "stream": None}[said["placement"]]
            if preset is Preset.EXACT and expected is not None:
                assert said["weights"] + said["compute"] == expected, said
            compared += 1
    assert compared == 20
