"""The soak: a server that works for a long time and must not grow. `python -m tests.chaos.soak --minutes 30`.

    a lap = some images of mixed kinds, a cancelled job, a guest, watchers that leave, nonsense over HTTP, and
    now and then a killed worker; then, when all of it has ended, a look at the server

Owns the laps and the judgement: descriptors, threads, processes and bytes on the card are as they were after
the first laps, and memory too, but for the history that a server keeps (bounded, some kilobytes for a job).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.chaos.images import ended, recipe
from tests.chaos.models import tiny_model
from tests.chaos.place import Broken, Place
from tests.chaos.script import House

from tidegate.core.quantity import GIB, MIB

JOBS_PER_LAP = 6
# The first laps fill caches, pools of threads and the models' place on the card.
WARM_LAPS = 3
KILL_EVERY_LAPS = 5
LOOKS_MIN = 3
# What an ended job leaves in memory on purpose: its ticket, story and notices, for 2,000 jobs.
JOB_BYTES = 24 * 1024
NOISE_BYTES = 12 * MIB
# A standby may be coming up; when nothing changes for a while, nothing is.
SETTLED_S = 10.0
SAME_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Look:
    """The server when nothing is to be done.

    `card_bytes` is what the card's ledger charges, `stray_bytes` what of it the server does not account for.
    """

    descriptors: int
    threads: int
    processes: int
    rss_bytes: int
    card_bytes: int
    stray_bytes: int
    jobs: int

    @property
    def family(self) -> tuple[int, int]:
        """Threads and processes."""
        return self.threads, self.processes

    def text(self) -> str:
        return (
            f"fds {self.descriptors} threads {self.threads} processes {self.processes} "
            f"rss {self.rss_bytes / MIB:.1f} MiB card {self.card_bytes / MIB:.1f} MiB "
            f"stray {self.stray_bytes} jobs {self.jobs}"
        )


class Soak:
    """The laps over one place."""

    def __init__(self, place: Place, *, jobs_per_lap: int) -> None:
        self._place = place
        self._jobs_per_lap = jobs_per_lap
        self._jobs = 0

    def lap(self, number: int) -> Look:
        """Do all sorts of things, wait for their end, and look."""
        place, chance = self._place, random.Random(f"soak {number}")
        wishes = [recipe(chance.randrange(32)) for _ in range(self._jobs_per_lap)]
        for wish in wishes:
            # It is about the server, not about sampling: many small images.
            wish.update(width=64, height=64, steps=1)
            # Every lap has prompts of its own, so that what is remembered of them is renewed too.
            wish["prompt"] += f" {number}" if chance.random() < 0.3 else ""
        jobs = [str(place.call("POST", "/api/jobs", wish)["id"]) for wish in wishes]
        self._jobs += len(jobs)
        place.call("POST", f"/api/jobs/{chance.choice(jobs)}/cancel")
        lease = place.ask(
            "POST", "/internal/negotiate_vram", {"bytes": 64 * MIB, "purpose": "soak", "pid": os.getpid()}
        )[1]
        for path in ("/api/vram", "/metrics", "/api/models", "/api/residency", f"/api/jobs/{jobs[0]}/story"):
            place.call("GET", path)
        place.ask("GET", "/api/jobs/nobody")
        place.ask("POST", "/api/jobs", {"prompt": 7})
        place.glance("/api/events")
        if number % KILL_EVERY_LAPS == 0 and (pid := place.worker("image")):
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(pid, signal.SIGKILL)
        for job in jobs:
            phase = ended(place, job, wait_max_s=600)["phase"]
            if phase not in ("done", "cancelled"):
                raise Broken(f"job {job} {phase}")
        if isinstance(lease, dict) and "lease" in lease:
            place.call("DELETE", f"/internal/leases/{lease['lease']}")
        return self._looked()

    def _looked(self) -> Look:
        # A standby that is being started, a process that is being reaped: it takes a moment until all rests.
        ends, last, same = time.monotonic() + SETTLED_S, self._look(), 0
        while time.monotonic() < ends and same < SAME_LOOKS:
            threading.Event().wait(0.3)
            look = self._look()
            # The connection over which we look is a descriptor of the server too, at times.
            is_same = abs(look.descriptors - last.descriptors) <= 1 and look.family == last.family
            last, same = look, same + 1 if is_same else 0
        return last

    def _look(self) -> Look:
        server = psutil.Process(self._place.pid)
        with contextlib.closing(self._place.card()) as card:
            used_bytes = card.use().used_bytes
        pools = self._place.call("GET", "/api/vram")["pools"]
        known = [tenant for pool in pools if pool["name"] != "ram" for tenant in pool["tenants"]]
        return Look(
            descriptors=server.num_fds(),
            threads=server.num_threads(),
            processes=len(self._place.family()),
            rss_bytes=server.memory_info().rss,
            card_bytes=used_bytes,
            stray_bytes=used_bytes - sum(tenant["predicted_bytes"] for tenant in known),
            jobs=self._jobs,
        )


def judged(looks: list[Look]) -> list[str]:
    """What has grown between the first and the last third, in words; nothing when all is well."""
    third = max(1, len(looks) // 3)
    first, last = looks[:third], looks[-third:]
    grown = []
    for name, room in (("descriptors", 2), ("threads", 1), ("processes", 1)):
        before = statistics.median(getattr(look, name) for look in first)
        after = statistics.median(getattr(look, name) for look in last)
        if after > before + room:
            grown.append(f"{name} grew from {before} to {after}")
    if (stray_bytes := max(look.stray_bytes for look in looks)) > 0:
        grown.append(f"{stray_bytes} bytes were charged on the card for nobody")
    jobs = last[-1].jobs - first[0].jobs
    rss = statistics.median(look.rss_bytes for look in last) - min(look.rss_bytes for look in first)
    if rss > NOISE_BYTES + jobs * JOB_BYTES:
        grown.append(f"memory grew by {rss / MIB:.1f} MiB over {jobs} jobs")
    return grown


def soaked(
    place: Place, *, minutes: float, warm_laps: int = WARM_LAPS, jobs_per_lap: int = JOBS_PER_LAP
) -> list[Look]:
    """Lap after lap for so long, and at least three after the warm-up; the looks of those."""
    soak, looks = Soak(place, jobs_per_lap=jobs_per_lap), []
    ends = time.monotonic() + 60 * minutes
    for number in itertools.count(1):
        look = soak.lap(number)
        print(f"lap {number}: {look.text()}", flush=True)
        if number > warm_laps:
            looks.append(look)
        if time.monotonic() >= ends and len(looks) >= LOOKS_MIN:
            return looks
    raise AssertionError("it counts for ever")


def main() -> int:
    """Soak and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", default="", help="sd1-tiny.safetensors; made when not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        place = Place(
            Path(folder),
            Path(options.model) if options.model else tiny_model(),
            house=House(card_bytes=GIB),
        )
        with place.open():
            looks = soaked(place, minutes=options.minutes)
    grown = judged(looks)
    for trouble in grown:
        print(f"BROKEN: {trouble}")
    print(f"soak: {options.minutes:g} minutes; first {looks[0].text()}; last {looks[-1].text()}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
