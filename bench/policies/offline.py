"""Offline: the best that could have been done, by exact search over a simpler machine.

Owns that machine and the search. The machine:

- It knows all requests in advance, but uploads nothing for a request that has not come.
- One thing is done at a time, at full speed: an upload, a stage of an image, or a language model's
evaluation,
  which serves all of its requests that have come at once.
- Whatever is done may be broken off when a request comes, and goes on without loss.
- Memory is freed at once and for nothing; processes start and end for nothing; state is saved for nothing.
- Stages run on the card, whole or in tiles. A language model has the most layers that an empty card holds,
and
  its KV cache only while it evaluates.

The world of the benchmark does not overlap computing on the card with anything but what the CPU does, so this
is at most the cost of any policy that uses neither the CPU nor fewer layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from policies.costs import Costs
from policies.instances import Instance, Request
from policies.outcome import CHAT_WEIGHT

from tidegate.core.planner.candidates import TILES
from tidegate.core.quantity import GIB
from tidegate.core.stage import COMPONENT_OF, DecodeMode, Execution, Placement, Stage, relay

STAGES = relay(from_image=False)


@dataclass(frozen=True, slots=True)
class Moment:
    """A state of the machine: what is left of every request, and what is loaded.

    `images` holds for each image its stage and the share of it that is left; `chats` the milliseconds that
    are left; `loaded` names what is on the card with the milliseconds of its upload that are left.
    """

    at_ms: float
    cost: float
    images: tuple[tuple[int, float], ...]
    chats: tuple[float, ...]
    loaded: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Move:
    """What is done next: an image's stage, or a language model's evaluation, after others were freed."""

    part: str
    image: int  # -1: the language model.
    run_ms: float  # Of the whole stage.
    freed: frozenset[str]


class Machine:
    """The offline machine of an instance."""

    def __init__(self, instance: Instance, costs: Costs) -> None:
        self.costs = costs
        self.card_bytes = instance.card_gib * GIB
        self.images = [request for request in instance.requests if request.is_image]
        self.chats = [request for request in instance.requests if not request.is_image]
        self.layers = {name: self._layers(name) for name in instance.llms}
        self._ways: dict[tuple[str, int], list[tuple[float, int]]] = {}

    def _layers(self, name: str) -> int:
        known = self.costs.llms[name]
        room_bytes = self.card_bytes - self.costs.context_bytes
        total = known.footprint.layers_count
        return max(n for n in range(total + 1) if known.on_card_bytes(n) <= room_bytes)

    @cached_property
    def arrivals(self) -> list[float]:
        """When requests come, in order."""
        return sorted({float(request.at_ms) for request in (*self.images, *self.chats)})

    def start(self) -> Moment:
        """An empty machine at the first request."""
        return Moment(
            self.arrivals[0],
            0.0,
            tuple((0, 1.0) for _ in self.images),
            tuple(self._chat_ms(request) for request in self.chats),
            (),
        )

    def _chat_ms(self, request: Request) -> float:
        known, layers = self.costs.llms[request.model], self.layers[request.model]
        return request.prompt_count * known.read_with_ms(layers) + request.answer_count * known.token_with_ms(
            layers
        )

    @cached_property
    def free_of_charge(self) -> float:
        """What answers take on a card of their own; it is no delay."""
        own = sum(request.answer_count * self.costs.llms[request.model].token_ms for request in self.chats)
        return CHAT_WEIGHT * own

    def is_over(self, now: Moment) -> bool:
        """Whether everybody has an answer."""
        return all(stage == len(STAGES) for stage, _ in now.images) and not any(now.chats)

    def waiting_weight(self, now: Moment, at_ms: float) -> int:
        """Cost of one millisecond: who has come and has no answer."""
        images = sum(
            stage < len(STAGES) and request.at_ms <= at_ms
            for (stage, _), request in zip(now.images, self.images, strict=True)
        )
        chats = sum(
            left > 0 and request.at_ms <= at_ms for left, request in zip(now.chats, self.chats, strict=True)
        )
        return images + CHAT_WEIGHT * chats

    # --- bytes ---

    def _resident_bytes(self, parts: frozenset[str]) -> int:
        total = sum(self.part_bytes(part) for part in parts)
        return total + (self.costs.context_bytes if any("/" in part for part in parts) else 0)

    def part_bytes(self, part: str) -> int:
        """Bytes of a component, or of a language model's weights with its device context."""
        model, _, component = part.partition("/")
        if component:
            weights = self.costs.images[model].weights_bytes
            return next(size for name, size in weights.items() if name == component)
        return self.costs.llms[model].footprint.on_card(self.layers[model])[0] + self.costs.context_bytes

    def upload_ms(self, part: str) -> float:
        """To bring it to the card."""
        context_bytes = 0 if "/" in part else self.costs.context_bytes
        return self.costs.load_ms(self.part_bytes(part) - context_bytes) + self.costs.machine["file_open_ms"]

    def ways(self, model: str, stage: int) -> list[tuple[float, int]]:
        """How a stage may run: milliseconds and bytes to compute in, fastest first."""
        key = (model, stage)
        if key not in self._ways:
            executions = [Execution(Placement.CARD)]
            if STAGES[stage] is Stage.DECODE:
                latent = self.costs.images[model].latent
                executions += [
                    Execution(Placement.CARD, DecodeMode.TILED, tile) for tile in TILES if tile < latent
                ]
            found = []
            for execution in executions:
                footprint = self.costs.footprint(model, STAGES[stage], execution)
                run_ms = self.costs.run_ms(model, STAGES[stage], execution)
                found.append((run_ms, footprint.card_bytes - footprint.weights_bytes))
            self._ways[key] = sorted(found)
        return self._ways[key]

    # --- moves ---

    def moves(self, now: Moment) -> Iterator[Move]:
        """Everything worth doing now; nothing at all means to wait for the next request."""
        seen: set[tuple[str, int, float]] = set()
        for index, ((stage, left), request) in enumerate(zip(now.images, self.images, strict=True)):
            alike = (request.model, stage, left)
            if stage < len(STAGES) and request.at_ms <= now.at_ms and alike not in seen:
                seen.add(alike)  # Of images that are alike the first is as good as any other.
                yield from self._image_moves(now, index)
        for model in self.layers:
            if any(
                left > 0 and request.at_ms <= now.at_ms and request.model == model
                for left, request in zip(now.chats, self.chats, strict=True)
            ):
                kv_bytes = self.costs.llms[model].footprint.on_card(self.layers[model])[1]
                yield from self._with_room(now, model, -1, [(0.0, kv_bytes)])

    def _image_moves(self, now: Moment, index: int) -> Iterator[Move]:
        model, stage = self.images[index].model, now.images[index][0]
        part = f"{model}/{COMPONENT_OF[STAGES[stage]]}"
        yield from self._with_room(now, part, index, self.ways(model, stage))

    def _with_room(self, now: Moment, part: str, image: int, ways: list[tuple[float, int]]) -> Iterator[Move]:
        """The fastest way after each set of others was freed; freeing more must make it faster."""
        others = [name for name, _ in now.loaded if name != part]
        found: list[tuple[frozenset[str], float]] = []
        for count in range(len(others) + 1):
            for freed in map(frozenset, combinations(others, count)):
                stay = frozenset(others) - freed | {part}
                room = self.card_bytes - self._resident_bytes(stay)
                fastest = next((run_ms for run_ms, compute in ways if compute <= room), None)
                if fastest is None or any(less <= freed and ms <= fastest for less, ms in found):
                    continue
                found.append((freed, fastest))
                yield Move(part, image, fastest, freed)

    def after(self, now: Moment, move: Move | None) -> Moment:
        """Do it until it is done or a request comes; None waits for the next request."""
        coming = next((at_ms for at_ms in self.arrivals if at_ms > now.at_ms), float("inf"))
        most_ms = coming - now.at_ms
        if move is None:
            return Moment(coming, now.cost + self._paid(now, most_ms), now.images, now.chats, now.loaded)
        loaded = {name: left for name, left in now.loaded if name not in move.freed}
        upload_ms = loaded.get(move.part, self.upload_ms(move.part))
        images, chats = list(now.images), list(now.chats)
        if move.image >= 0:
            stage, left = images[move.image]
            passed_ms = min(most_ms, upload_ms + left * move.run_ms)
            rest = left - max(0.0, passed_ms - upload_ms) / move.run_ms
            images[move.image] = (stage, round(rest, 9)) if rest > 1e-9 else (stage + 1, 1.0)
        else:
            served = [
                index
                for index, request in enumerate(self.chats)
                if request.model == move.part and request.at_ms <= now.at_ms and chats[index] > 0
            ]
            passed_ms = min(most_ms, upload_ms + min(chats[index] for index in served))
            for index in served:
                rest_ms = chats[index] - max(0.0, passed_ms - upload_ms)
                chats[index] = round(rest_ms, 6) if rest_ms > 1e-6 else 0.0
        loaded[move.part] = round(max(0.0, upload_ms - passed_ms), 6)
        return Moment(
            now.at_ms + passed_ms,
            now.cost + self._paid(now, passed_ms),
            tuple(images),
            tuple(chats),
            tuple(sorted(loaded.items())),
        )

    def _paid(self, now: Moment, passed_ms: float) -> float:
        return self.waiting_weight(now, now.at_ms) * passed_ms


class Search:
    """Branch and bound, best first move first; states that were reached more cheaply are not seen again."""

    def __init__(self, machine: Machine, *, nodes_max: int) -> None:
        self.machine = machine
        self.best = float("inf")
        self.nodes_count = 0
        self._nodes_max = nodes_max
        self._reached: dict[tuple[object, ...], list[tuple[float, float]]] = {}

    def run(self) -> float | None:
        """The least cost, or None when the bound of nodes was reached."""
        stack = [self.machine.start()]
        while stack:
            now = stack.pop()
            if self.machine.is_over(now):
                self.best = min(self.best, now.cost)
                continue
            self.nodes_count += 1
            if self.nodes_count > self._nodes_max:
                return None
            if now.cost + self._least_more(now) >= self.best - 1e-6 or self._is_known(now):
                continue
            moves = list(self.machine.moves(now))
            while not moves:
                now = self.machine.after(now, None)
                moves = list(self.machine.moves(now))
            following = [self.machine.after(now, move) for move in moves]
            # The stack gives back the last first: what costs least per progress is looked at first.
            following.sort(key=lambda then: -(then.cost + self._least_more(then)))
            stack.extend(following)
        return self.best - self.machine.free_of_charge

    def _is_known(self, now: Moment) -> bool:
        """Whether the same was reached before, at no higher price with the wait until now."""
        key = (now.images, now.chats, now.loaded)
        reached = self._reached.setdefault(key, [])
        for at_ms, cost in reached:
            if at_ms <= now.at_ms + 1e-9 and cost + self._waiting(now, at_ms) <= now.cost + 1e-6:
                return True
        reached.append((now.at_ms, now.cost))
        return False

    def _waiting(self, now: Moment, since_ms: float) -> float:
        """What it costs to wait from then until now with everything as it is."""
        total, at_ms = 0.0, since_ms
        for coming in (*self.machine.arrivals, now.at_ms):
            if at_ms < coming <= now.at_ms:
                total += self.machine.waiting_weight(now, at_ms) * (coming - at_ms)
                at_ms = coming
        return total

    def _least_more(self, now: Moment) -> float:
        """Less than this it cannot cost from here: images one after the other, chats each alone."""
        machine = self.machine
        total = 0.0
        jobs: list[tuple[float, float]] = []
        for (stage, left), request in zip(now.images, machine.images, strict=True):
            if stage < len(STAGES):
                rest_ms = left * machine.ways(request.model, stage)[0][0]
                later = range(stage + 1, len(STAGES))
                rest_ms += sum(machine.ways(request.model, following)[0][0] for following in later)
                jobs.append((max(now.at_ms, float(request.at_ms)), rest_ms))
                total -= max(now.at_ms, float(request.at_ms))
        total += sum(_shortest_first(jobs))
        return total + CHAT_WEIGHT * sum(now.chats)


def _shortest_first(jobs: list[tuple[float, float]]) -> Iterator[float]:
    """Ends of jobs (release, length) on one machine when the shortest rest always goes first: the
    least sum.
    """
    coming = sorted(jobs)
    rests: list[float] = []
    at_ms, index = 0.0, 0
    while index < len(coming) or rests:
        if not rests:
            at_ms = max(at_ms, coming[index][0])
        while index < len(coming) and coming[index][0] <= at_ms:
            rests.append(coming[index][1])
            index += 1
        rests.sort(reverse=True)
        until_ms = coming[index][0] if index < len(coming) else float("inf")
        if at_ms + rests[-1] <= until_ms:
            at_ms += rests.pop()
            yield at_ms
        else:
            rests[-1] -= until_ms - at_ms
            at_ms = until_ms


def optimum_ms(instance: Instance, costs: Costs, *, nodes_max: int) -> float | None:
    """The least weighted cost of an instance, or None when the search was given up."""
    return Search(Machine(instance, costs), nodes_max=nodes_max).run()
