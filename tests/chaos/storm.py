"""The storm: round after round of work and strikes, until so many faults have met somebody.

Owns the loop and the workloads' protocol: `images` and `chats` are the two there are.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

from tests.chaos.place import Broken, Place
from tests.chaos.script import House, Kind, Round, round_of
from tests.chaos.strikes import Striker
from tests.chaos.tally import Outcome, Tally

# How long a round's work takes when nobody disturbs it, before the first was timed.
EXPECTED_S = 2.0
TROUBLES_MAX = 5


class Workload(Protocol):
    """Work of one kind that is under way while faults strike; `name` is its place in the last line."""

    name: str

    def begin(self, place: Place, chance: random.Random, *, prefix: str) -> None:
        """Ask for what the lottery says; `prefix` makes idempotency keys of this round."""

    def again(self, place: Place) -> None:
        """The server was restarted: everything asked for must still be known. Raises Broken."""

    def finish(self, place: Place) -> Outcome:
        """Wait until all of it has ended, and judge."""

    def close(self) -> None:
        """End what the workload itself keeps."""


class Storm:
    """One run of a seed over a folder."""

    def __init__(self, place: Place, tally: Tally, *, record: Path, workloads: Sequence[Workload]) -> None:
        self._place = place
        self._tally = tally
        self._record = record
        self._workloads = workloads
        self._striker = Striker(place, again=self._again)
        self._expected_s = EXPECTED_S

    def rage(self, faults: int, *, among: Collection[Kind], say: Callable[[str], None]) -> None:
        """Go on until so many faults were counted."""
        tally = self._tally
        while tally.faults < faults and len(tally.troubles) < TROUBLES_MAX:
            began = time.monotonic()
            try:
                script = round_of(tally.seed, tally.next_round, among=among)
                self._round(script, faults_left=faults - tally.faults)
            except Broken as broken:
                raise Broken(f"seed {tally.seed}, round {tally.next_round}: {broken}") from broken
            tally.next_round += 1
            tally.took_s += time.monotonic() - began
            tally.save(self._record)
            say(f"round {tally.next_round}: {tally.line()}")
        self._whole()

    def _round(self, script: Round, *, faults_left: int) -> None:
        chance = random.Random(script.chance_seed)
        began = time.monotonic()
        for workload in self._workloads:
            workload.begin(self._place, chance, prefix=f"{self._tally.seed}-{script.number}-{workload.name}")
        strikes = script.strikes[:faults_left]
        struck: list[tuple[str, bool]] = []
        for strike in strikes:
            left_s = began + strike.moment * self._expected_s - time.monotonic()
            threading.Event().wait(max(0.0, left_s))
            struck.append((strike.kind.value, self._striker.strike(strike)))
        outcomes = self._finished()
        if not strikes or time.monotonic() - began < self._expected_s:
            self._expected_s = (3 * self._expected_s + time.monotonic() - began) / 4
        # Counted only now: a round that is broken off is done again as a whole.
        for kind, met in struck:
            counts = self._tally.struck if met else self._tally.missed
            counts[kind] = counts.get(kind, 0) + 1
        for name, outcome in outcomes:
            self._tally.add(name, outcome)

    def _finished(self) -> list[tuple[str, Outcome]]:
        # A card that somebody else fills stays full until the work is done, or for so long that waiting jobs
        # see him leave.
        relief = threading.Timer(FOREIGN_MAX_S, self._striker.calm)
        relief.start()
        try:
            return [(workload.name, workload.finish(self._place)) for workload in self._workloads]
        finally:
            relief.cancel()
            relief.join()
            self._striker.calm()

    def _again(self) -> None:
        for workload in self._workloads:
            workload.again(self._place)

    def _whole(self) -> None:
        """Every image is in the gallery once, and the last server leaves nothing behind."""
        names: list[str] = []
        before = ""
        while page := self._place.call("GET", f"/api/images?count_max=1000&before={before}")["images"]:
            names += [image["id"] for image in page]
            before = names[-1]
        started = self._tally.works.get("images", {}).get("finished", 0)
        if len(set(names)) != len(names) or len(names) != started:
            raise Broken(f"{started} images were finished, and the gallery holds {len(set(names))}")


FOREIGN_MAX_S = 8.0


def opened(folder: Path, model: Path, talker: Path | None) -> Place:
    """The place of a storm, in the first house."""
    return Place(folder, model, house=House(), talker=talker)
