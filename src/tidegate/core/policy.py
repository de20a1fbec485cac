"""The policy: every limit, price and patience of the arbiter in one place, with its reason.

Owns numbers only. A field is configuration: nothing here changes while the arbiter runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.core.planner.question import YIELD_ORDER, YieldClass
from tidegate.core.quantity import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Limits end in `_max` or `_count`, times in `_ms`, amounts in `_bytes`."""

    yield_order: tuple[YieldClass, ...] = YIELD_ORDER
    candidates_max: int = 64
    jobs_max: int = 1_024
    requests_max: int = 1_024
    guests_max: int = 64
    story_lines_max: int = 32

    # A priority step is worth this much waiting, so nobody waits for ever behind the important.
    ageing_ms: int = 60_000
    # A job whose model is loaded may overtake those that came at most this much earlier: batch before
    # swapping.
    affinity_ms: int = 20_000
    # A chat that waited this long makes a sampling image yield; the tape loses nothing.
    chat_wait_max_ms: int = 30_000
    # A millisecond that a chat waits weighs as much as this many of an image.
    chat_weight: int = 3
    # How fast two processes compute beside each other on one card, each in percent of its speed alone. A
    # prior: without further measures the driver gives each its slice of time.
    beside_percent: int = 50
    # A stage waits this long for answers that are being given, before it suspends them.
    answer_wait_max_ms: int = 10_000
    # Whoever was given the card keeps it at least this long, or swapping would be all that happens.
    quantum_ms: int = 5_000
    # Somebody who waited this long and would fit an emptied card lets nobody pass any more.
    starving_ms: int = 60_000
    # How long a job waits for foreign memory to return before it ends with a clear error.
    capacity_wait_max_ms: int = 600_000
    # A reservation that got no bytes in this time is planned anew.
    binding_wait_max_ms: int = 20_000
    # How many waiting image jobs are looked at in one decision.
    window_count: int = 8

    start_wait_max_ms: int = 60_000
    release_wait_max_ms: int = 3_000
    terminate_wait_max_ms: int = 3_000
    kill_wait_max_ms: int = 5_000
    level_wait_max_ms: int = 60_000
    chat_silence_max_ms: int = 60_000
    predict_wait_max_ms: int = 60_000
    # A stage may be silent this many times as long as expected, and never less than the floor.
    stage_patience: int = 8
    stage_wait_min_ms: int = 60_000

    backoff_ms: int = 500
    backoff_max_ms: int = 30_000
    failures_max: int = 5
    quarantine_ms: int = 60_000
    # Killed from outside (signal 9 or 15) a worker has not failed, and is no worse a worker for it. Killed so
    # often without being of use in between it has: then it is the kernel that wants its memory.
    kills_max: int = 16
    # So often a job may find that what it had saved is gone; then its disk counts as broken.
    losses_max: int = 4
    # So often workers may end before they begin a stage; then it counts as the stage's failure.
    starts_max: int = 8
    # After this long without a failure a worker's record is clean again.
    forgive_ms: int = 120_000
    chat_attempts_max: int = 4
    level_attempts_max: int = 4
    predict_attempts_max: int = 3

    # Idle processes of the engines were seen with some two hundred MiB of private memory.
    process_ram_bytes: int = 256 * MIB
    # Freed but for this much counts as freed; the rest is charged as residue until the process ends.
    residue_max_bytes: int = 64 * MIB
    # Drift raises the headroom up to a quarter of the pool, and every clean stage lowers it by an eighth.
    drift_notice_bytes: int = 64 * MIB

    idle_release_ms: int = 600_000
    guest_hold_max_ms: int = 300_000
    guest_wait_max_ms: int = 60_000
    # Decode is negotiated when sampling is expected to take no longer than this any more.
    look_ahead_ms: int = 4_000
    # A model that is expected is brought back so much earlier than its return takes twice. Below zero none
    # comes back before it is asked for, not even when it was pushed and there is room.
    prewarm_ms: int = 1_000
    # Tending (bring-back, idle release, pre-warm) happens at least this often while there is something to
    # tend.
    tend_ms: int = 15_000
