"""What tidegate promises about a card, line by line: lines 1 to 9 of the list of features.

One server with models of both engines on one virtual card; guests and strangers take what the test wants them
to. What is compared with the server's own words is the card's ledger, which another process keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tide_house import TideHouse, placements
from tide_talk import Json
from tidegate.cli.demo_server import CARD_BYTES
from tidegate.core.quantity import MIB

pytestmark = pytest.mark.slow
IMAGE = "image/VCARD0"
TALKER = "llm/talker"


def test_line_01_it_is_known_who_holds_how_much(house: TideHouse) -> None:
    house.chat()
    job = house.begun(steps=5)
    house.computing(job, "denoise", step=1)
    parts = house.parts(IMAGE)
    assert {"tiny/text_encoder", "tiny/diffusion", "compute"} <= parts
    house.ended(job)
    guest = house.lease(100 * MIB)
    house.foreign(50 * MIB)
    tenants = house.tenants()
    assert set(tenants[IMAGE]["parts"]) == {"tiny/text_encoder", "tiny/diffusion", "tiny/vae"}
    assert set(tenants[TALKER]["parts"]) == {"weights", "kv"}
    weights, kv = (tenants[TALKER]["parts"][part] for part in ("weights", "kv"))
    assert weights["predicted_bytes"] == weights["observed_bytes"] > 0
    # The projector, for which room is kept beside the KV cache, is loaded with the first picture.
    assert kv["predicted_bytes"] - MIB < kv["observed_bytes"] < kv["predicted_bytes"]
    assert tenants[IMAGE]["predicted_bytes"] == tenants[IMAGE]["observed_bytes"] == house.held(IMAGE) > 0
    assert tenants[TALKER]["observed_bytes"] == house.held(TALKER) > 0
    assert tenants[f"guest/{guest}"]["predicted_bytes"] == 100 * MIB
    assert tenants["foreign"]["observed_bytes"] == 50 * MIB
    assert {IMAGE, TALKER, "front"} <= set(house.tenants("ram"))
    house.drop(guest)


def test_line_02_projected_use_is_checked_before_every_heavy_step(house: TideHouse) -> None:
    house.chat()
    house.leave(650 * MIB)
    planned = " ".join(house.post("/api/plan", prompt="checked")["explanation"])
    assert planned.count("MiB on the card (exact)") == 3, planned
    assert planned.count("may be used") == 3, planned
    job = house.image(prompt="checked")["id"]
    story = house.story(job)
    for stage in ("encode", "denoise", "decode"):
        assert 0 < story.index(f"{stage} planned") < story.index(f"{stage} runs"), story
    assert house.peak() <= 650 * MIB
    assert house.server.card().refused_count == 0, "nothing was ever asked of the card that it did not have"


def test_line_03_soft_release_comes_before_hard_release(house: TideHouse) -> None:
    house.chat()
    whole_bytes = house.held(TALKER)
    weights_bytes = house.tenants()[TALKER]["parts"]["weights"]["predicted_bytes"]
    house.unload("tiny", "plain")
    since = house.mark()
    house.leave(whole_bytes - MIB)
    house.notice("The KV cache of talker gives up", since=since)
    assert (house.level(), house.held(TALKER)) == ("warm", weights_bytes)
    assert not any("The model talker" in text for text in house.told(since))
    house.leave(weights_bytes - MIB)
    house.notice("The model talker gives up", since=since)
    house.stands("cold")
    assert house.held(TALKER) == 0


def test_line_04_several_models_and_the_least_recently_used_goes_first(house: TideHouse) -> None:
    for model in ("tiny", "plain"):
        house.image(model=model, steps=1)
    for model in ("talker", "packed-talker"):
        house.chat(model=model)
    held_bytes = house.server.card().tenants_bytes
    assert {"tiny/diffusion", "plain/diffusion"} <= house.parts(IMAGE)
    assert (house.level("talker"), house.level("packed-talker")) == ("hot", "hot")
    house.leave(held_bytes - 10 * MIB)
    assert (house.level("talker"), house.level("packed-talker")) == ("warm", "hot")
    house.leave(held_bytes - 500 * MIB)
    assert "tiny/diffusion" not in house.parts(IMAGE)
    assert "plain/diffusion" in house.parts(IMAGE)


@dataclass(frozen=True)
class Squeezed:
    """An image beside which somebody took memory while it was sampled."""

    before: list[str]
    view: Json
    notices: list[str]
    parts: set[str]


@pytest.fixture(scope="module")
def squeezed(open_house: TideHouse) -> Squeezed:
    house = open_house
    house.chat()
    house.unload("tiny", "plain")
    house.leave(670 * MIB)
    before = house.post("/api/plan", prompt="squeezed")["explanation"]
    since = house.mark()
    job = house.begun(prompt="squeezed", steps=4)
    house.computing(job, "denoise", step=1)
    parts = house.parts(IMAGE)
    free_bytes = 670 * MIB - house.server.card().tenants_bytes
    house.foreign(free_bytes - 2 * MIB)
    found = Squeezed(before, house.ended(job), house.told(since), parts)
    assert house.server.card().refused_count == 0
    house.recover()
    return found


def told(texts: list[str], words: str) -> bool:
    return any(words in text for text in texts)


def test_line_05_memory_is_looked_at_again_between_the_stages(squeezed: Squeezed) -> None:
    assert not told(squeezed.before, "the diffusion of tiny gives up"), squeezed.before
    assert told(squeezed.notices, "The diffusion of tiny gives up"), squeezed.notices
    assert placements(squeezed.view) == {"encode": "card", "denoise": "card", "decode": "card"}


def test_line_06_the_text_encoder_leaves_after_conditioning(house: TideHouse, squeezed: Squeezed) -> None:
    words = "The text encoder of tiny gives up 235 MiB, because denoise needs"
    assert told(squeezed.notices, words), squeezed.notices
    assert "tiny/text_encoder" not in squeezed.parts
    # What it made stays: the same prompt needs no text encoder any more, whose room is not there now.
    house.leave(630 * MIB)
    again = house.story(house.image(prompt="squeezed", steps=1)["id"])
    assert "encode" not in again, again


def test_line_07_the_diffusion_model_leaves_before_a_decode_that_would_not_fit(squeezed: Squeezed) -> None:
    words = "The diffusion of tiny gives up 617 MiB, because decode needs"
    assert told(squeezed.notices, words), squeezed.notices


def test_line_08_decode_takes_the_largest_piece_that_fits_else_the_cpu(house: TideHouse) -> None:
    wide = {"width": 192, "height": 64, "steps": 1}
    assert placements(house.image(**wide))["decode"] == "card"
    house.unload("tiny")
    whole = house.post("/api/plan", prompt="x", **wide)["stages"][-1]
    house.leave(whole["card_bytes"] - MIB)
    view = house.image(**wide)
    assert placements(view)["decode"] == "card/16"
    assert told(view["notices"], "Decode runs on the card, in tiles of 16"), view["notices"]
    house.unload("tiny")
    house.leave(MIB)
    view = house.image(**wide)
    assert placements(view)["decode"] == "cpu"
    assert told(view["notices"], "Decode runs on the CPU"), view["notices"]


def test_line_09_any_step_moves_to_the_cpu_by_itself(house: TideHouse) -> None:
    house.unload("tiny", "plain", "talker", "packed-talker")
    house.stands("cold")
    house.stands("cold", "packed-talker")
    house.foreign(CARD_BYTES - MIB)
    view = house.image(prompt="on the CPU")
    assert placements(view) == {"encode": "cpu", "denoise": "cpu", "decode": "cpu"}
    assert len([text for text in view["notices"] if "runs on the CPU" in text]) == 3, view["notices"]
    assert house.chat()
    assert house.server.card().tenants_bytes == 0
    house.foreign(0)
