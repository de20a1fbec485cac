"""Images as a workload of the storm: what is asked for, and whether each is finished and the right one.

Owns the recipes, the pictures that nobody disturbed, and the judgement. An undisturbed picture is made by one
worker on the CPU, stage by stage, with no server, no card and no journal; a picture of the storm must be the
same wherever its stages ran and whatever crashed on the way. Tiles change pixels at their seams, so
the picture to compare with has the tile of the recipe that came with the image.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # Any: JSON as the server sends it

from PIL import Image
from tests.chaos.place import Broken, Place
from tests.chaos.tally import Outcome
from tests.chaos.undisturbed import Undisturbed

SAMPLERS = ("euler", "euler_a", "heun", "dpm++2m")
PROMPTS = ("a lighthouse at dusk", "a fox in the snow", "the sea, seen from above", "two chairs")
RECIPES_COUNT = 32
# Seconds that an image may take when everything is struck that can be.
IMAGE_MAX_S = 300


@dataclass(slots=True, kw_only=True)
class Asked:
    """One job under way."""

    key: str
    body: Mapping[str, Any]  # Any: JSON, as above
    job: str


def recipe(number: int) -> dict[str, Any]:  # Any: JSON, as above
    """One of the requests that the storm draws from; few, so that each picture is compared many times."""
    chance = random.Random(f"recipe {number}")
    width, height = chance.choice(((64, 64), (64, 64), (64, 128), (128, 64), (192, 64)))
    return {
        "prompt": chance.choice(PROMPTS),
        "width": width,
        "height": height,
        "steps": chance.choice((1, 2, 2, 4)),
        "sampler": chance.choice(SAMPLERS),
        "seed": chance.randrange(4),
        "model": chance.choice(("tiny", "tiny", "twin", "plain")),
        "cfg": chance.choice((1.0, 7.0)),
    }


class Images:
    """The images of one run."""

    name = "images"

    def __init__(self, model: Path, *, known: dict[str, str], recipes_count: int = RECIPES_COUNT) -> None:
        """`known` holds the hashes of undisturbed pictures and is added to."""
        self._undisturbed = Undisturbed(model, known=known)
        self._recipes_count = recipes_count
        self._asked: list[Asked] = []

    def begin(self, place: Place, chance: random.Random, *, prefix: str) -> None:
        """Ask for one to three jobs."""
        for number in range(chance.choice((1, 1, 2, 3))):
            body = recipe(chance.randrange(self._recipes_count))
            body["priority"] = chance.choice((0, 0, 1))
            asked = Asked(key=f"{prefix}-{number}", body=body, job="")
            asked.job = self._post(place, asked)
            self._asked.append(asked)

    def again(self, place: Place) -> None:
        """After a restart the same orders must be the same jobs."""
        for asked in self._asked:
            job = self._post(place, asked)
            if job != asked.job:
                raise Broken(f"job {asked.job} was forgotten and made anew as {job}")

    def finish(self, place: Place) -> Outcome:
        """Wait for all of them, and judge."""
        outcome = Outcome(started=len(self._asked))
        for asked in self._asked:
            view = ended(place, asked.job, wait_max_s=IMAGE_MAX_S)
            if view["phase"] != "done":
                story = place.call("GET", f"/api/jobs/{asked.job}/story")["lines"]
                outcome.troubles.append(f"{asked.key} {view['phase']}: {view['message']}; {story}")
                continue
            outcome.finished += 1
            outcome.compared += 1
            trouble = self._compare(place, asked, view["images"])
            outcome.identical += not trouble
            outcome.troubles += [trouble] if trouble else []
        self._asked.clear()
        return outcome

    def close(self) -> None:
        """Let the worker go that makes the undisturbed pictures."""
        self._undisturbed.close()

    def _post(self, place: Place, asked: Asked) -> str:
        return str(place.call("POST", "/api/jobs", asked.body, Idempotency_Key=asked.key)["id"])

    def _compare(self, place: Place, asked: Asked, images: list[Any]) -> str:
        (image,) = images
        view = place.call("GET", f"/api/images/{image['image']}/metadata")
        tile = int(view["recipe"]["stages"]["decode"].get("tile") or 0)
        with Image.open(io.BytesIO(place.call("GET", f"/api/images/{image['image']}"))) as picture:
            pixels = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()
        if pixels != view["pixels_sha256"]:
            return f"{asked.key}: the file of image {view['id']} is not what the gallery says"
        if pixels != self._undisturbed.picture(asked.body, tile=tile):
            return f"{asked.key}: another picture than the undisturbed one: {view['recipe']}"
        return ""


def ended(place: Place, job: str, *, wait_max_s: int) -> dict[str, Any]:  # Any: JSON, as above
    """A job once it has ended. Raises Broken when it does not."""
    piece_s = 30
    for _ in range(wait_max_s // piece_s):
        view: dict[str, Any] = place.call("GET", f"/api/jobs/{job}?wait_ms={piece_s * 1000}")
        if view["is_ended"]:
            return view
    story = place.call("GET", f"/api/jobs/{job}/story")["lines"]
    raise Broken(f"job {job} does not end: {view['phase']}; {story}")
