"""The policy benchmark's own truth: its search against brute force, and its world against its rules."""

from __future__ import annotations

import pytest
from policies.contenders import CONTENDERS
from policies.costs import Costs, read_costs
from policies.instances import CARDS_GIB, WORKLOADS, Instance, Request, instance
from policies.offline import Machine, Moment, Search
from policies.shared import Shared
from policies.world import CARD, World

from tidegate.core.quantity import GIB

COSTS = read_costs()


def tiny(seed: int) -> Instance:
    """Two images and two chats within a few seconds; one each where there are more models to load."""
    made = instance("small", CARDS_GIB[seed % len(CARDS_GIB)], seed, costs=COSTS)
    count = 2 if len(made.images) + len(made.llms) == 2 else 1
    images = [request for request in made.requests if request.is_image][:count]
    chats = [request for request in made.requests if not request.is_image][:count]
    kept = [
        Request(
            name=request.name,
            at_ms=1_000 + index * (900 + 700 * (seed % 4)),
            model=request.model,
            prompt_count=request.prompt_count,
            answer_count=request.answer_count,
        )
        for index, request in enumerate((*images, *chats))
    ]
    return Instance(
        workload="tiny",
        card_gib=made.card_gib,
        seed=seed,
        images=made.images,
        llms=made.llms,
        requests=tuple(kept),
    )


def brute_force(machine: Machine, now: Moment) -> float:
    """The least cost over every sequence of moves, without a bound and without a memory."""
    if machine.is_over(now):
        return now.cost
    moves = list(machine.moves(now)) or [None]
    return min(brute_force(machine, machine.after(now, move)) for move in moves)


@pytest.mark.parametrize("seed", range(10))
def test_the_search_finds_what_brute_force_finds(seed: int) -> None:
    machine = Machine(tiny(seed), COSTS)
    wanted = brute_force(machine, machine.start()) - machine.free_of_charge
    assert Search(machine, nodes_max=100_000).run() == pytest.approx(wanted)


def test_a_search_that_is_given_up_says_so() -> None:
    machine = Machine(instance("small", 6, 5, costs=COSTS), COSTS)
    assert Search(machine, nodes_max=10).run() is None


@pytest.mark.parametrize("policy", CONTENDERS)
def test_nobody_holds_more_than_the_card_and_everybody_is_answered(policy: str) -> None:
    """On a card that holds either model alone, and with whole checkpoints not both."""
    made = instance("bursty", 8, 3, costs=COSTS)
    world = World(made, CONTENDERS[policy](made, COSTS), costs=COSTS)
    peak_bytes = 0
    deliver = world.deliver

    def watched(event: object) -> None:
        nonlocal peak_bytes
        deliver(event)  # type: ignore[arg-type]  # It is handed through as it came.
        peak_bytes = max(peak_bytes, world.used(CARD))

    world.deliver = watched  # type: ignore[method-assign]  # It watches and changes nothing.
    outcome = world.run()
    assert 0 < peak_bytes <= 8 * GIB
    answered = len(outcome.image_ms) + len(outcome.chat_ms) + outcome.failed_count
    assert answered == len(made.requests)


def test_a_checkpoint_that_does_not_fit_fails_for_whoever_loads_it_whole() -> None:
    seed = next(seed for seed in range(50) if _models(seed) == ("sdxl-1024",))
    made = instance("mixed", 6, seed, costs=COSTS)
    ours, theirs = (
        World(made, CONTENDERS[policy](made, COSTS), costs=COSTS).run()
        for policy in ("tidegate", "unload the LLM first")
    )
    assert (ours.failed_count, ours.refused_count) == (0, 0)
    assert theirs.failed_images and theirs.refused_count


def _models(seed: int) -> tuple[str, ...]:
    return instance("mixed", 6, seed, costs=COSTS).images


def test_half_a_minute_of_sampling_stops_for_a_chat_and_goes_on_where_it_was() -> None:
    """On a card that holds either, with figures of real models: an image of half a minute, a chat after five
    seconds.
    """
    requests = (
        Request(name="image", at_ms=1_000, model="sdxl-1024"),
        Request(name="chat", at_ms=6_000, model="8b-q4", prompt_count=200, answer_count=100),
    )
    made = Instance(
        workload="one", card_gib=8, seed=0, images=("sdxl-1024",), llms=("8b-q4",), requests=requests
    )
    outcome = World(made, CONTENDERS["tidegate"](made, COSTS), costs=COSTS).run()
    assert outcome.first_token_ms[0] <= 4_000, "the end of a step, and the model comes up"
    alone_ms = COSTS.images["sdxl-1024"].own_ms
    loads_ms = 2 * COSTS.load_ms(COSTS.images["sdxl-1024"].all_bytes)
    assert outcome.image_ms[0] <= alone_ms + loads_ms + outcome.chat_ms[0] + 4_000, "no step is done twice"


def test_an_instance_is_the_same_for_every_card_and_each_time() -> None:
    for workload in WORKLOADS:
        made = [instance(workload, card_gib, 7, costs=COSTS).requests for card_gib in (6, 24, 6)]
        assert made[0] == made[1] == made[2]


def test_work_that_is_shared_takes_longer_and_is_all_done() -> None:
    clock = _Clock()
    shared, ended = Shared(clock), dict[str, float]()
    for owner, work_ms in (("a", 100.0), ("b", 100.0), ("b", 40.0)):
        shared.add(owner, work_ms, lambda name=f"{owner}{work_ms}": ended.setdefault(name, clock.now_ms))  # type: ignore[misc]  # A default binds the name.
    clock.run()
    # Two processes at half speed; within one of them tasks do not slow each other down.
    assert ended == {"b40.0": 80.0, "a100.0": 200.0, "b100.0": 200.0}


class _Clock:
    def __init__(self) -> None:
        self.now_ms = 0.0
        self._waiting: list[tuple[float, int, object]] = []

    def later(self, in_ms: float, do: object) -> None:
        """Do something after a while."""
        self._waiting.append((self.now_ms + in_ms, len(self._waiting), do))

    def run(self) -> None:
        """Let time pass until nothing is left."""
        while self._waiting:
            self._waiting.sort(key=lambda entry: entry[:2])
            self.now_ms, _, do = self._waiting.pop(0)
            assert callable(do)
            do()


def test_figures_say_where_they_are_from() -> None:
    assert isinstance(COSTS, Costs)
    known = COSTS.images["sd15-512"]
    assert known.own_ms == pytest.approx(31 + 20 * 101 + 337)
