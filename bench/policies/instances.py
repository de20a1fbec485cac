"""Instances: a house and the requests that come to it, made from a workload's name, a card and a seed.

Owns Instance and the five workloads. An instance is a pure function of its three parameters; every policy is
given the very same one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from policies.costs import Costs

CARDS_GIB = (6, 8, 12, 16, 24)
# The figures of the first requests would be those of an empty machine; all begin in the same second.
FIRST_MS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Something a user wants: an image, or an answer of a language model."""

    name: str
    at_ms: int
    model: str
    prompt_count: int = 0  # Tokens of a prompt; 0 for an image.
    answer_count: int = 0

    @property
    def is_image(self) -> bool:
        """Whether it is an image."""
        return self.answer_count == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One house and everything that comes to it."""

    workload: str
    card_gib: int
    seed: int
    images: tuple[str, ...]  # Image models.
    llms: tuple[str, ...]
    requests: tuple[Request, ...]


def instance(workload: str, card_gib: int, seed: int, *, costs: Costs) -> Instance:
    """Make one; the workload and its house do not depend on the card."""
    chance = random.Random(f"{workload}/{seed}")
    images, llms = _house(chance, costs)
    drafts = sorted(WORKLOADS[workload](chance, _Scale(costs, images, llms)), key=lambda draft: draft.at_ms)
    named = tuple(
        Request(
            name=f"{'image' if draft.is_image else 'chat'}{index}",
            at_ms=FIRST_MS + draft.at_ms,
            model=draft.model,
            prompt_count=draft.prompt_count,
            answer_count=draft.answer_count,
        )
        for index, draft in enumerate(drafts)
    )
    return Instance(workload=workload, card_gib=card_gib, seed=seed, images=images, llms=llms, requests=named)


def _house(chance: random.Random, costs: Costs) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One image model and one language model; a second of either in one house of four."""
    images, llms = sorted(costs.images), sorted(costs.llms)
    chance.shuffle(images)
    chance.shuffle(llms)
    more = chance.randrange(8)
    return tuple(images[: 2 if more in (0, 1) else 1]), tuple(llms[: 2 if more in (1, 2) else 1])


class _Scale:
    """What workloads are made of: images, chats, and gaps in proportion to how long an image takes."""

    def __init__(self, costs: Costs, images: tuple[str, ...], llms: tuple[str, ...]) -> None:
        self.images, self.llms = images, llms
        self.own_ms = int(sum(costs.images[name].own_ms for name in images) / len(images))

    def image(self, chance: random.Random, at_ms: int) -> Request:
        """An image now."""
        return Request(name="", at_ms=at_ms, model=chance.choice(self.images))

    def chat(self, chance: random.Random, at_ms: int) -> Request:
        """A chat now: prompts are some hundred tokens, answers some dozens to hundreds."""
        return Request(
            name="",
            at_ms=at_ms,
            model=chance.choice(self.llms),
            prompt_count=int(min(6_000, 40 + chance.expovariate(1 / 400))),
            answer_count=int(min(1_500, 16 + chance.expovariate(1 / 120))),
        )


def _arrivals(chance: random.Random, *, until_ms: int, gap_ms: float) -> Iterator[int]:
    at_ms = chance.expovariate(1 / gap_ms)
    while at_ms < until_ms:
        yield int(at_ms)
        at_ms += chance.expovariate(1 / gap_ms)


def _chat_heavy(chance: random.Random, scale: _Scale) -> Iterator[Request]:
    """Somebody talks all the time; now and then an image."""
    for at_ms in _arrivals(chance, until_ms=200_000, gap_ms=9_000):
        yield scale.chat(chance, at_ms)
    for at_ms in _arrivals(chance, until_ms=200_000, gap_ms=40_000 + 2 * scale.own_ms):
        yield scale.image(chance, at_ms)


def _image_batches(chance: random.Random, scale: _Scale) -> Iterator[Request]:
    """Batches of three to six images, with a few chats."""
    at_ms = 0
    for _ in range(3):
        count = chance.randint(3, 6)
        for _ in range(count):
            yield scale.image(chance, at_ms + chance.randrange(500))
        at_ms += int(count * scale.own_ms * 1.4) + chance.randint(5_000, 25_000)
    for chat_ms in _arrivals(chance, until_ms=at_ms, gap_ms=max(15_000, at_ms / 6)):
        yield scale.chat(chance, chat_ms)


def _mixed(chance: random.Random, scale: _Scale) -> Iterator[Request]:
    """Both, by turns and at once."""
    gap_ms = max(12_000, int(2.2 * scale.own_ms))
    for at_ms in _arrivals(chance, until_ms=12 * gap_ms, gap_ms=gap_ms):
        yield scale.image(chance, at_ms)
    for at_ms in _arrivals(chance, until_ms=12 * gap_ms, gap_ms=max(10_000, gap_ms)):
        yield scale.chat(chance, at_ms)


def _bursty(chance: random.Random, scale: _Scale) -> Iterator[Request]:
    """Three bursts of both with silence between."""
    at_ms = 0
    for _ in range(3):
        images = chance.randint(1, 4)
        for _ in range(images):
            yield scale.image(chance, at_ms + chance.randrange(5_000))
        for _ in range(chance.randint(2, 6)):
            yield scale.chat(chance, at_ms + chance.randrange(8_000))
        at_ms += int(images * scale.own_ms * 1.5) + chance.randint(20_000, 90_000)


def _ten_then_chat(chance: random.Random, scale: _Scale) -> Iterator[Request]:
    """Ten images at once, and somewhere while they are made a chat."""
    for _ in range(10):
        yield scale.image(chance, chance.randrange(2_000))
    yield scale.chat(chance, chance.randint(2_000, int(8 * scale.own_ms)))


WORKLOADS: dict[str, Callable[[random.Random, _Scale], Iterator[Request]]] = {
    "chat-heavy": _chat_heavy,
    "image-batches": _image_batches,
    "mixed": _mixed,
    "bursty": _bursty,
    "ten-then-chat": _ten_then_chat,
}


def _small(chance: random.Random, scale: _Scale) -> Iterator[Request]:
    """Eight to twelve requests within a short time, for the exact search."""
    count = chance.randint(8, 12)
    images = chance.randint(2, 5)
    span_ms = int(images * scale.own_ms * chance.uniform(0.6, 1.6)) + 10_000
    for _ in range(images):
        yield scale.image(chance, chance.randrange(span_ms))
    for _ in range(count - images):
        yield scale.chat(chance, chance.randrange(span_ms))


WORKLOADS["small"] = _small
