"""The script: what happens in round n of a seed, the same every time.

    a round = a few images and chats asked for, strikes at moments of their making, and their end

Owns the lottery. How a strike is carried out is `strikes`' part, how work is asked for and judged the part
of `images` and `chats`. A moment is a share of the time that the round's work is expected to take, so that
fast and slow machines are struck in the same places.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Collection
from dataclasses import dataclass

from tidegate.core.quantity import GIB, MIB

STRIKES_MAX = 5


class Kind(enum.StrEnum):
    """What can go wrong."""

    WORKER = "worker"  # kill -9 of the image worker
    TALKER = "talker"  # kill -9 of the language model's process
    FRONT = "front"  # kill -9 of the process that owns the conversations
    SERVER = "server"  # kill -9 of the server, then another one, perhaps in another house
    REFUSAL = "refusal"  # the card refuses an allocation
    FOREIGN = "foreign"  # somebody else takes most of the card
    GUEST = "guest"  # somebody asks for a part of the card, and holds it for a while
    PREDICTOR = "predictor"  # kill -9 of the predictor
    STANDBY = "standby"  # kill -9 of the worker that waits
    CRASH = "crash"  # the image worker ends by a fault of its own
    FAINT = "faint"  # the language model's process ends by a fault of its own
    PAUSE = "pause"  # a worker is stopped for a moment, as on a machine that slept
    RAM = "ram"  # other limits of RAM, by a reload


_SHARES = {
    Kind.WORKER: 30,
    Kind.TALKER: 20,
    Kind.SERVER: 12,
    Kind.REFUSAL: 10,
    Kind.FRONT: 8,
    Kind.FOREIGN: 5,
    Kind.GUEST: 4,
    Kind.PREDICTOR: 3,
    Kind.STANDBY: 3,
    Kind.CRASH: 2,
    Kind.FAINT: 1,
    Kind.PAUSE: 1,
    Kind.RAM: 1,
}
# The weights of the image model: text encoder 235 MiB, diffusion 618 MiB; the language model with its KV
# cache and buffers about 40 MiB.
CARDS_BYTES = (3 * GIB, 1 * GIB, 900 * MIB, 640 * MIB, 320 * MIB, 96 * MIB)
# Little enough to matter, enough for one component on the CPU beside two or three idle processes.
RAMS_BYTES = (0, 0, 4 * GIB, 2560 * MIB)


@dataclass(frozen=True, slots=True)
class House:
    """A virtual card (0: none, all on the CPU) and a limit of RAM (0: the machine's)."""

    card_bytes: int = CARDS_BYTES[0]
    ram_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One fault: when, as a share of the work, how hard, and the house that a new server finds."""

    kind: Kind
    moment: float
    amount: float
    house: House


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Orders are drawn by the workloads from `chance_seed`."""

    number: int
    strikes: tuple[Strike, ...]
    chance_seed: str


def round_of(seed: int, number: int, *, among: Collection[Kind] = tuple(Kind)) -> Round:
    """Round `number` of a seed, with these kinds of faults."""
    chance = random.Random(f"{seed}/{number}")
    count = chance.randint(1, STRIKES_MAX)
    moments = sorted(chance.random() for _ in range(count))
    shares = {kind: share for kind, share in _SHARES.items() if kind in among}
    kinds = chance.choices(tuple(shares), weights=tuple(shares.values()), k=count)
    strikes = tuple(
        Strike(
            kind=kind,
            moment=moment,
            amount=chance.random(),
            house=House(card_bytes=chance.choice(CARDS_BYTES), ram_bytes=chance.choice(RAMS_BYTES)),
        )
        for kind, moment in zip(kinds, moments, strict=True)
    )
    return Round(number=number, strikes=strikes, chance_seed=f"{seed}/{number}/orders")
