"""Workloads: what a seed makes. A house that is too small, what it needs, who comes when, and how often what
fails.

Owns Workload, Act and Faults. Acts are an explicit list, so that a failing schedule can be shrunk by leaving
acts out; everything else follows from the seed by name (`chance.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.sim.chance import Chance

from tidegate.core.house import CardDescriptor, House, ImageModel, LanguageModel, LlmFootprint, Sight
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Component

LEVELS = ("hot", "warm", "partial", "cold")
ACTS_MS = 12_000  # Everything that comes from outside comes within this time.


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that happens from outside; `what` names it, `who` its subject, `data` its numbers."""

    at_ms: int
    what: str
    who: str
    data: tuple[int, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Chances in thousandths, while faults are on."""

    die: int = 0
    hang: int = 0
    refuse: int = 0
    garbage: int = 0  # NaN, blank.
    overshoot: int = 0
    free_late: int = 0
    leak: int = 0
    deaf: int = 0  # Ignores an ask, or SIGTERM.
    lose: int = 0  # What an earlier stage saved is gone.
    kill: int = 0  # Somebody outside ends the worker of a stage.


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One world's beginning and everything that comes to it from outside."""

    seed: int
    house: House
    llms: dict[str, LlmFootprint]
    faults: Faults
    acts: tuple[Act, ...] = field(default_factory=tuple)
    event_delay_ms: int = 5


def workload(seed: int) -> Workload:
    """Make the workload of a seed."""
    chance = Chance(seed)
    cards = tuple(_card(chance, index) for index in range(chance.number("cards", 0, 9) // 8 + 1))
    if chance.happens("no card", 30):
        cards = ()
    ram = CardDescriptor(
        name="ram",
        total_bytes=chance.number("ram", 7, 20) * GIB,
        headroom_bytes=256 * MIB,
    )
    images = _image_models(chance)
    names = [f"llm{index}" for index in range(chance.number("llms", 0, 5) // 2)]
    llms = {name: _llm(chance) for name in names}
    configured = tuple(
        LanguageModel(
            name=name,
            card=cards[chance.number("llm card", 0, len(cards) - 1)].name if cards else "",
            slots_count=chance.number("slots", 1, 3),
        )
        for name in names
    )
    house = House(ram=ram, cards=cards, image_models=images, language_models=configured)
    return Workload(
        seed=seed, house=house, llms=llms, faults=_faults(chance), acts=_acts(chance, house, names)
    )


def calm(busy: Workload) -> Workload:
    """The same world when nothing fails, nobody else is there and nobody gives up."""
    acts = tuple(act for act in busy.acts if act.what in ("job", "chat"))
    return replace(busy, faults=Faults(), acts=acts)


def is_calm(known: Workload) -> bool:
    """Whether nothing fails in it by itself or from outside."""
    return known.faults == Faults() and all(act.what in ("job", "chat") for act in known.acts)


def _card(chance: Chance, index: int) -> CardDescriptor:
    sights = (Sight.PER_PROCESS, Sight.PER_PROCESS, Sight.PER_CARD, Sight.OWN_LEDGER)
    return CardDescriptor(
        name=f"gpu{index}",
        total_bytes=chance.number("card", 24, 80) * 128 * MIB,
        sight=sights[chance.number("sight", 0, 3)],
        context_bytes=chance.number("context", 0, 3) * 100 * MIB,
        headroom_bytes=chance.number("headroom", 0, 2) * 64 * MIB,
        unified=chance.happens("unified", 60),
    )


def _image_models(chance: Chance) -> tuple[ImageModel, ...]:
    """One or two models; the second may have components out of the first one's files."""
    models = tuple(_image_model(chance, index) for index in range(chance.number("image models", 1, 2)))
    shared = [component for component in Component if chance.happens(f"shares {component}", 150)]
    if len(models) < 2 or not shared:
        return models
    first, second = models
    weights = {**second.weights_bytes, **{component: first.weights_bytes[component] for component in shared}}
    owners = dict.fromkeys(shared, first.name)
    return first, ImageModel(name=second.name, weights_bytes=weights, owners=owners)


def _image_model(chance: Chance, index: int) -> ImageModel:
    return ImageModel(
        name=f"image{index}",
        weights_bytes={
            Component.TEXT_ENCODER: chance.number("encoder", 100, 3000) * MIB,
            Component.DIFFUSION: chance.number("diffusion", 800, 5000) * MIB,
            Component.VAE: chance.number("vae", 50, 300) * MIB,
        },
    )


def _llm(chance: Chance) -> LlmFootprint:
    return LlmFootprint(
        layers_count=chance.number("layers", 8, 32),
        weights_bytes=chance.number("weights", 1000, 5000) * MIB,
        kv_bytes=chance.number("kv", 100, 1200) * MIB,
        compute_bytes=chance.number("compute", 50, 300) * MIB,
        state_bytes=chance.number("state", 10, 1500) * MIB,
    )


def _faults(chance: Chance) -> Faults:
    """Some seeds have a theme: one fault, often. The others have a little of everything."""
    names = ("die", "hang", "refuse", "garbage", "overshoot", "free_late", "leak", "deaf")
    theme = chance.number("theme", 0, 2 * len(names) - 1)
    if chance.happens("killed again and again", 50):
        return Faults(kill=chance.number("killed how often", 700, 980))
    if theme < len(names):
        return Faults(**{names[theme]: chance.number("theme strength", 100, 500)})
    return Faults(
        **{name: chance.number("strength", 10, 100) for name in names}, lose=chance.number("loses", 0, 60)
    )


def _acts(chance: Chance, house: House, llms: list[str]) -> tuple[Act, ...]:
    acts: list[Act] = []
    jobs_count = max(1, chance.number("jobs", 0, 3))
    if chance.happens("burst", 40):
        jobs_count = 6
    for index in range(jobs_count):
        acts += _job_acts(chance, f"job{index}", len(house.image_models))
    for index in range(chance.number("chats", 1, 2) if llms else 0):
        at_ms = chance.number("chat at", 0, ACTS_MS // 2)
        model = llms[chance.number("chat model", 0, len(llms) - 1)]
        length_ms = chance.number("chat length", 100, 4_000)
        acts.append(Act(at_ms, "chat", f"chat{index}", (chance.number("priority", 0, 1), length_ms), model))
        if chance.happens("chat goes", 150):
            acts.append(Act(at_ms + chance.number("goes after", 1, 4_000), "chat_cancel", f"chat{index}"))
    pools = ["ram", *(card.name for card in house.cards if card.sight is not Sight.OWN_LEDGER)]
    for _ in range(chance.number("foreign", 0, 2)):
        pool = pools[chance.number("foreign pool", 0, len(pools) - 1)]
        percent = chance.number("foreign size", 0, 50)
        acts.append(Act(chance.number("foreign at", 0, ACTS_MS), "foreign", pool, (percent,)))
    if house.cards and chance.happens("guest", 250):
        at_ms = chance.number("guest at", 0, ACTS_MS)
        card = house.cards[chance.number("guest card", 0, len(house.cards) - 1)]
        amount_bytes = card.total_bytes // 16 * chance.number("guest size", 1, 12)
        data = (amount_bytes, chance.number("hold", 500, 9_000), chance.number("wait", 0, 2) * 4_000)
        acts.append(Act(at_ms, "guest", "guest0", data, card.name))
    if llms and chance.happens("wish", 120):
        model = llms[chance.number("wished model", 0, len(llms) - 1)]
        at_ms = chance.number("wished at", 0, ACTS_MS // 2)
        level = LEVELS[chance.number("wished level", 0, len(LEVELS) - 1)]
        acts.append(Act(at_ms, "wish", model, (chance.number("wished layers", 1, 8),), level))
        if chance.happens("wish is taken back", 500):
            acts.append(Act(at_ms + chance.number("wished for", 100, 8_000), "wish", model, (0,)))
    if llms and chance.happens("intent", 120):
        model = llms[chance.number("intended model", 0, len(llms) - 1)]
        acts.append(Act(chance.number("intent at", 0, ACTS_MS // 2), "intent", model))
    if chance.happens("killer", 200):
        acts.append(Act(chance.number("kills at", 500, ACTS_MS), "kill", "any"))
    if chance.happens("unload", 150):
        acts.append(Act(chance.number("unloads at", 1_000, ACTS_MS), "unload", house.image_models[0].name))
    if chance.happens("restart", 40):
        acts.append(Act(chance.number("restarts at", 500, ACTS_MS), "restart", "arbiter"))
    return tuple(sorted(acts, key=lambda act: (act.at_ms, act.what, act.who)))


def _job_acts(chance: Chance, name: str, models_count: int) -> list[Act]:
    at_ms = chance.number("job at", 0, ACTS_MS // 2)
    side = (32, 64, 96, 128)[chance.number("size", 0, 3)]
    steps_count = chance.number("steps", 2, 8)
    from_image = int(chance.happens("from image", 150))
    data = (side, steps_count, from_image, chance.number("priority", 0, 1))
    acts = [Act(at_ms, "job", name, data, f"image{chance.number('model', 0, models_count - 1)}")]
    if chance.happens("job cancelled", 120):
        acts.append(Act(at_ms + chance.number("cancelled after", 1, 6_000), "job_cancel", name))
    return acts
