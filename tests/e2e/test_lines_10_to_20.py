"""What tidegate promises when something breaks, and of its language models: lines 10 to 20.

One server with models of both engines on one virtual card, whose image worker spoils numbers or crashes when
a test orders it to; everything else of it is real.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.chaos import doubles

from serving_process import has_ended
from tide_house import TideHouse, placements
from tidegate.cli.demo_server import CARD_BYTES
from tidegate.core.image.ladder import ATTEMPTS_MAX
from tidegate.core.quantity import MIB

pytestmark = pytest.mark.slow
IMAGE = "image/VCARD0"
TALKER = "llm/talker"
TOKENS = 2_500
# Room for the language model or for sampling, and not for both.
SHARED_BYTES = 640 * MIB
ROUNDS_MAX = 60
Spoil = Callable[[str, int], None]


@pytest.fixture(scope="module")
def spoil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoil]:
    with pytest.MonkeyPatch.context() as patch:
        yield doubles.employ("spoiling", tmp_path_factory.mktemp("orders"), patch)


@pytest.fixture(scope="module")
def open_house(
    tide_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, spoil: Spoil
) -> Iterator[TideHouse]:
    with TideHouse(tmp_path_factory.mktemp("house"), **tide_files).open() as house:
        yield house


@pytest.fixture(scope="module")
def picture(open_house: TideHouse) -> str:
    """The pixels of the image that nobody disturbs."""
    return open_house.pixels(open_house.image())


@pytest.fixture(scope="module")
def text(open_house: TideHouse) -> str:
    """The answer that nobody disturbs."""
    return open_house.chat(tokens=TOKENS)


@pytest.mark.leaves("the server after the one that is killed", "children", "threads", "fds")
def test_line_10_what_was_computed_is_saved_and_no_crash_loses_the_sampling(
    house: TideHouse, picture: str
) -> None:
    job = house.begun()
    house.computing(job, "denoise", step=1)
    pids = [worker["pid"] for worker in house.get("/internal/health")["workers"] if worker["pid"]]
    with house.talk(tokens=TOKENS) as talk:
        house.kill()
    assert talk.ending.startswith("cut off")
    assert len(pids) >= 3 and all(has_ended(pid) for pid in pids), "no process outlives its server"
    assert house.server.card().tenants_bytes == 0
    assert any(tape.stat().st_size for tape in (house.server.state / "work").iterdir())
    house.start()
    assert house.pixels(house.ended(job)) == picture
    assert "encode" not in house.story(job), "what was finished is not computed a second time"
    assert house.chat(), "the card of the killed server serves the next one"


def test_line_11_after_a_crash_the_image_is_finished_in_a_minimal_mode(
    house: TideHouse, picture: str, spoil: Spoil
) -> None:
    house.chat()
    spoil("decode:crash", 1)
    view = house.image()
    assert doubles.left() == 0
    assert house.pixels(view) == picture
    assert placements(view) == {"encode": "card", "denoise": "card", "decode": "cpu"}
    story = house.story(view["id"])
    assert "decode failed on the card: the worker died" in story
    assert story.count("denoise runs") == 1, story
    # Only the VAE was loaded again.
    loaded = {part for part in house.tenants("ram")[IMAGE]["parts"] if "/" in part}
    assert (loaded, house.parts(IMAGE)) == ({"tiny/vae"}, set())
    assert house.level() == "hot", "nobody else was disturbed"


def test_line_12_silent_failures_are_found(house: TideHouse, picture: str, spoil: Spoil) -> None:
    for order, words in (("decode:nan", "NaN or infinity"), ("denoise:inf", "NaN or infinity")):
        spoil(order, 1)
        view = house.image()
        assert words in house.story(view["id"])
        assert placements(view)[order.partition(":")[0]] == "cpu", "a smaller tile is no cure"
        assert (doubles.left(), house.pixels(view)) == (0, picture)
    spoil("blank:black", 1)
    view = house.image()
    assert "the image was of one colour" in house.story(view["id"])
    assert (doubles.left(), house.pixels(view)) == (0, picture)
    spoil("blank:black", 2)
    view = house.image()
    assert house.pixels(view) != picture, "somebody may want black"
    assert any("one colour" in notice for notice in view["notices"]), view["notices"]


def test_line_13_retries_are_more_conservative_and_bounded(house: TideHouse, picture: str) -> None:
    house.unload("tiny", "talker")
    house.stands("cold")
    with house.server.ledger() as card:
        card.plant_fault(1, count=10_000)
    view = house.image()
    assert house.pixels(view) == picture
    assert placements(view)["decode"] == "cpu"
    story = house.story(view["id"])
    assert "denoise failed on the card: memory was refused" in story
    assert "denoise failed streamed to the card" in story
    assert story.count(" failed ") <= 2 * ATTEMPTS_MAX
    assert house.chat(), "a language model asks for less each time, and at last for nothing"
    assert house.held(TALKER) == 0


def test_line_14_a_language_model_moves_between_its_levels_in_mid_sentence(
    house: TideHouse, text: str
) -> None:
    held = {}
    with house.talk(tokens=TOKENS) as talk:
        for level in ("warm", "partial", "cold"):
            layers = {"layers": 2} if level == "partial" else {}
            house.put("/api/models/talker/level", level=level, **layers)
            house.stands(level)
            held[level] = house.held(TALKER)
        assert house.pid(TALKER) == 0
        house.put("/api/models/talker/level", level="auto")
        house.stands("hot")
        held["hot"] = house.held(TALKER)
    assert talk.whole() == text
    assert 0 == held["cold"] < held["warm"] < held["partial"] < held["hot"], held
    assert any("held at WARM" in pause for pause in talk.pauses), talk.pauses
    assert talk.resumed_count >= 2


def test_line_15_the_language_model_yields_first_and_no_further_than_it_must(
    house: TideHouse, text: str, picture: str
) -> None:
    house.unload("plain")
    house.leave(SHARED_BYTES)
    since, refused_count = house.mark(), house.server.card().refused_count
    with house.talk(tokens=TOKENS) as talk:
        view = house.image()
    assert talk.whole() == text
    assert house.pixels(view) == picture
    assert any("The KV cache of talker gives up" in pause for pause in talk.pauses), talk.pauses
    assert not any("The model talker gives up" in notice for notice in house.told(since))
    house.notice("talker is back at HOT", since=since)
    assert house.peak() <= SHARED_BYTES
    # A decode that takes all that is left, which the language model's weights are a part of.
    large = {"width": 192, "height": 192, "steps": 1}
    house.unload("tiny")
    house.leave(house.post("/api/plan", prompt="x", **large)["stages"][-1]["card_bytes"] + MIB // 4)
    since = house.mark()
    with house.talk(tokens=TOKENS) as talk:
        house.computing(house.begun(**large), "decode", step=0)
        house.notice("The model talker gives up", since=since)
        house.until("level", lambda data: (data["model"], data["level"]) == ("talker", "cold"), since=since)
    assert talk.whole() == text
    assert house.server.card().refused_count == refused_count, "nothing was asked for that was not there"


def test_line_16_it_comes_back_partly_where_it_does_not_fit(house: TideHouse, text: str) -> None:
    house.unload("tiny", "talker")
    house.stands("cold")
    kept = house.leave_for_layers(3)
    since = house.mark()
    with house.talk(tokens=TOKENS) as talk:
        assert house.level() == "partial"
        assert 0 < house.held(TALKER) <= kept
        house.leave(CARD_BYTES)
        house.until("level", lambda data: (data["model"], data["level"]) == ("talker", "hot"), since=since)
    assert talk.whole() == text


def test_line_17_what_is_wanted_soon_is_brought_back_before(house: TideHouse) -> None:
    house.image()
    house.chat()
    since = house.mark()
    house.image()
    house.chat()
    assert house.told(since) == [], "both stay where there is room"
    house.unload("talker")
    house.stands("cold")
    house.post("/api/intent", kind="typing")
    house.stands("hot")
    house.notice("because somebody is about to ask it something", since=since)
    # Asked at even intervals, it is there before the next question.
    begun_s = time.monotonic()
    for count in range(1, ROUNDS_MAX):
        house.chat(tokens=4, model="packed-talker")
        house.unload("packed-talker")
        if house.comes("notice", lambda data: "by its rhythm" in data["text"], until_s=begun_s + count):
            break
    house.notice("packed-talker is brought back, because by its rhythm it is wanted in about", since=since)
    house.stands("hot", "packed-talker")
    # Nobody asks it any more; its rhythm would bring it back in the midst of other tests.
    house.put("/api/models/packed-talker/level", level="cold")
    house.stands("cold", "packed-talker")


def test_line_18_weights_stay_in_the_page_cache_and_loading_overlaps_work(
    house: TideHouse, tide_files: dict[str, Path]
) -> None:
    house.unload("tiny", "talker")
    house.stands("cold")
    house.post("/api/models/tiny/load")
    for name in ("image", "language"):
        assert is_cached(tide_files[name]), f"{name} would have to be read from the disk"
    job = house.begun(steps=6)
    house.computing(job, "denoise", step=1)
    with house.talk(tokens=20):
        assert not house.get(f"/api/jobs/{job}")["is_ended"], "it was loaded and spoke meanwhile"
    house.ended(job)


def is_cached(path: Path) -> bool:
    """Whether the last page of a file can be read without waiting for the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        last = path.stat().st_size // 4_096 * 4_096
        return os.preadv(descriptor, [bytearray(4_096)], last, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_line_19_it_chats_enhances_prompts_and_tags_images(house: TideHouse) -> None:
    enhanced = house.post("/api/enhance", idea="a cat", seed=1, max_tokens=24)
    assert enhanced["prompt"] and enhanced["prompt"] != "a cat"
    wish = {"prompt": "a cat", "enhance": True, "seed": 3, "size": "64x64", "steps": 1}
    made = house.post("/v1/images/generations", **wish)["data"][0]
    kept = house.get(f"/api/images/{made['image']}/metadata")["recipe"]["request"]
    assert (kept["idea"], kept["prompt"]) == ("a cat", made["revised_prompt"])
    (found,) = house.post("/api/tag", gallery=[made["image"]], tags_max=5, seed=1)["results"]
    assert found["image"] == made["image"] and found["caption"] and 1 <= len(found["tags"]) <= 5
    assert house.chat(text=f"What is {found['caption'][:40]}?")


def test_line_20_memory_is_negotiated_and_health_says_who_holds_what(house: TideHouse) -> None:
    house.chat()
    job = house.begun(steps=4)
    house.computing(job, "denoise", step=1)
    wish = {"bytes": 2_150 * MIB, "purpose": "a VAE decode", "needed_in_ms": 2_000, "wait_ms": 60_000}
    asked = house.post("/internal/negotiate_vram", **wish)
    assert asked["state"] in ("granted", "waiting")
    while asked["state"] == "waiting":
        asked = house.get(f"/internal/leases/{asked['lease']}", wait_ms=10_000)
    assert (asked["state"], asked["bytes"]) == ("granted", 2_150 * MIB)
    workers = {worker["name"]: worker for worker in house.get("/internal/health")["workers"]}
    for name in (IMAGE, TALKER, "front"):
        assert workers[name]["pid"] and workers[name]["memory_bytes"], workers[name]
    assert sum(workers[IMAGE]["memory_bytes"]["VCARD0"].values()) >= house.held(IMAGE) > 0
    house.drop(asked["lease"])
    house.ended(job)
