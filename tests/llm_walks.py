"""Random walks of a language model over its levels, for tests: what is done next, and what must hold.

Owns the asks that are going on during a walk, one step of it, and the checks after each: the card's ledger
says what the engine says, nothing failed, nothing was said twice. What the texts must be is the tests' part.
"""

from __future__ import annotations

import random

from llm_house import Heard, LlmHouse
from tidegate.core.llm.level import Level
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.wire import asks

LAYERS_COUNT = 5  # Of the synthetic tiny model: four blocks and its output.
# Greedy and seeded, plain and penalised, short prompts and one longer than a snapshot's distance.
SAMPLINGS = (
    asks.Sampling(temperature=0.0),
    asks.Sampling(temperature=0.8, seed=11),
    asks.Sampling(temperature=1.2, seed=12, top_k=0, top_p=1.0, min_p=0.02, repeat_penalty=1.1),
    asks.Sampling(temperature=0.9, seed=13, typical_p=0.9, dry_multiplier=0.5, presence_penalty=0.3),
)


def bodies(tokens_max: int) -> dict[str, asks.Completion]:
    """Four asks that are answered side by side."""
    return {
        f"s{n}": asks.Completion(
            prompt=f"{n} " + "once upon a time " * (2 + 30 * n),
            sampling=asks.Sampling(
                **{
                    **{name: getattr(sampling, name) for name in sampling.__struct_fields__},
                    "tokens_max": tokens_max,
                }
            ),
        )
        for n, sampling in enumerate(SAMPLINGS)
    }


def undisturbed(house: LlmHouse, tokens_max: int) -> dict[str, list[int]]:
    """The tokens of the four, all at once and without any walk."""
    asked = bodies(tokens_max)
    for name, body in asked.items():
        house.ask(name, body)
    answers = house.answered(*asked)
    return {name: answer.ids for name, answer in zip(asked, answers, strict=True)}


class Walk:
    """One walk: `step` does one thing, at a seeded moment of the streams."""

    def __init__(self, house: LlmHouse, card: VirtualCard, *, seed: int, tokens_max: int) -> None:
        self.house, self._card, self._tokens_max = house, card, tokens_max
        self._chance = random.Random(seed)
        self._level = Level.HOT
        self._round = 0
        self._names: dict[str, str] = {}
        self.finished: list[tuple[str, Heard]] = []
        house.start_child()
        self._reach(Level.HOT)

    def _reach(self, level: Level) -> None:
        reached = self.house.set_level(level, layers=LAYERS_COUNT)
        self._level = level
        assert self.house.child is not None
        row = self._card.read().row_of(self.house.child.pid)
        assert row is not None
        said = sum(
            held.weights_bytes + held.kv_bytes + held.compute_bytes
            for held in reached.holdings
            if held.device
        )
        assert row.holdings[0].used_bytes == said, f"{level}: the ledger and the engine disagree"

    def step(self, *, kills: bool) -> None:
        """Let the streams run for a seeded while, then move."""
        self._ask_again()
        if self._level is not Level.WARM:
            self._run(self._chance.randrange(0, 24))
        ways = ["hot", "hot", "cold"] if self._level is Level.WARM else ["warm", "warm", "cold"]
        match self._chance.choice([*ways, "kill"] if kills else ways):
            case "warm":
                self._reach(Level.WARM)
            case "hot":
                self._reach(Level.HOT)
            case "cold":
                self.house.end_child()
                self.house.start_child()
                self._reach(Level.HOT)
            case _:
                self.house.kill_child()
                self.house.start_child()
                self._reach(Level.HOT)

    def _run(self, tokens_count: int) -> None:
        goal = self.house.tokens_of(*self._names) + tokens_count
        self.house.until(
            lambda: (
                self.house.tokens_of(*self._names) >= goal
                or all(self.house.heard[name].ended is not None for name in self._names)
            )
        )

    def _ask_again(self) -> None:
        if any(self.house.heard[name].ended is None for name in self._names):
            return
        self._take_down()
        self._round += 1
        for name, body in bodies(self._tokens_max).items():
            self._names[f"{name}/{self._round}"] = name
            self.house.ask(f"{name}/{self._round}", body)

    def _take_down(self) -> None:
        self.finished += [(name, self.house.heard[asked]) for asked, name in self._names.items()]
        self._names.clear()

    def end(self) -> list[tuple[str, Heard]]:
        """Let everything come to its end; what was asked and what came of it."""
        if self._level is Level.WARM:
            self._reach(Level.HOT)
        self.house.answered(*self._names)
        self._take_down()
        return self.finished
