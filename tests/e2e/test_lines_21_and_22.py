"""What the user is told, and what quantised models are good for: lines 21 and 22.

One server for both, apart from the others: which ways are worth it depends on the times that it has measured.
"""

from __future__ import annotations

import pytest

from tide_house import TideHouse, placements
from tidegate.core.quantity import MIB

pytestmark = pytest.mark.slow
TOKENS = 2_500
# Room for the language model or for sampling, and not for both.
SHARED_BYTES = 640 * MIB


def test_line_21_the_user_is_told_in_words_and_why(house: TideHouse) -> None:
    house.unload("tiny", "plain")
    house.chat()
    house.leave(SHARED_BYTES)
    since = house.mark()
    with house.talk(tokens=TOKENS) as talk:
        house.image()
    wide = {"width": 192, "height": 64, "steps": 1}
    house.unload("tiny", "talker")
    house.leave(house.post("/api/plan", prompt="x", **wide)["stages"][-1]["card_bytes"] - MIB)
    house.image(**wide)
    offloaded = "The KV cache of talker gives up 25 MiB, because denoise needs"
    assert any(pause.startswith(offloaded) for pause in talk.pauses), talk.pauses
    for words in (
        offloaded,
        "1 conversation(s) with talker pause to make room",
        "talker is back at HOT after",
        "Denoise runs on the CPU, about",
        "Decode runs on the card, in tiles of 16, about",
        ": not on the card: needs",
    ):
        house.notice(words, since=since)


def test_line_22_quantised_models_work_and_what_quantising_would_buy_is_said(house: TideHouse) -> None:
    assert placements(house.image(model="packed"))["denoise"] == "card"
    assert house.chat(model="packed-talker")
    house.unload("tiny", "plain", "packed", "talker", "packed-talker")
    denoise = house.post("/api/plan", prompt="x", model="packed")["stages"][1]
    house.leave(denoise["card_bytes"] + MIB)
    assert placements(house.image(model="packed", prompt="x"))["denoise"] == "card"
    plan = house.post("/api/plan", prompt="x")
    assert plan["stages"][1]["execution"]["placement"] != "card"
    advice = " ".join(plan["advice"])
    assert "With the diffusion as q8_0" in advice and "denoise would run on the card" in advice, advice
