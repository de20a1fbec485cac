"""Many processes on one virtual card: contention, death at any instant, an independent count of every byte.

The checks keep their own truth: what each process says it holds, summed here, and a witness file apart from
the ledger.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.core.quantity import MIB
from tidegate.runtime.cards.ledger_file import HEADER_WORDS, ROWS_MAX, LedgerFile
from tidegate.runtime.cards.virtual import Reading, VirtualCard, VirtualSpec
from vcard_process import VcardProcess


def spec(capacity_bytes: int = 8 * MIB, **knobs: int) -> VirtualSpec:
    return VirtualSpec(capacity_bytes=capacity_bytes, knobs=knobs)


@contextlib.contextmanager
def several(card: VirtualCard, count: int) -> Iterator[list[VcardProcess]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(VcardProcess(card.path)) for _ in range(count)]


def check_words(reading: Reading) -> None:
    """What must hold of every reading, whatever the processes are doing."""
    for card in reading.cards:
        assert card.used_bytes <= card.capacity_bytes
        assert card.tenants_bytes <= card.tenants_peak_bytes <= card.peak_bytes <= card.capacity_bytes
    for row in reading.processes:
        held = row.holdings[0]
        # A process that was killed half-way leaves words that do not agree, and counts nothing.
        if row.alive:
            assert held.used_bytes == held.buffers_bytes + held.context_bytes + held.pool_bytes
        assert held.used_bytes <= held.peak_bytes


def test_concurrent_chargers_never_exceed_the_capacity(tmp_path: Path) -> None:
    """Each process raises a witness after a grant and lowers it before a free."""
    witness = tmp_path / "witness"
    witness.write_bytes(bytes(64 * 8))
    with VirtualCard.create_in(tmp_path, spec(4 * MIB)) as card, several(card, 4) as probes:
        for slot, probe in enumerate(probes):
            assert probe.ask(f"witness {witness} {slot}") == "ok"
            probe.send(f"storm 0 {slot} 2000 {MIB} 2")
        looks = 0
        while any(not select.select([probe.process.stdout], [], [], 0)[0] for probe in probes):
            check_words(card.read())
            looks += 1
        said = [probe.answer().split() for probe in probes]
        assert looks > 0
        assert all(answer[0] == "ok" for answer in said), said
        # Under this pressure both must have happened, or nothing was tested.
        assert all(int(granted) > 0 and int(refused) > 0 for _, granted, refused in said)
        check_held(card, probes)


def check_held(card: VirtualCard, probes: list[VcardProcess]) -> None:
    """With everybody at rest: what each process says, and their sum, against the ledger."""
    reading = card.read()
    check_words(reading)
    said = {probe.pid: probe.number("held 0") for probe in probes}
    alive = {row.pid: row.held_bytes() for row in reading.processes if row.alive}
    assert alive == said
    assert reading.cards[0].tenants_bytes == sum(said.values())
    assert int(probes[0].ask("info 0").split()[7]) == reading.cards[0].capacity_bytes - sum(said.values())


def storm_and_kill(card: VirtualCard, *, seed: int, kill_count: int) -> None:
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(VcardProcess(card.path)) for _ in range(4)]
        for _ in range(kill_count):
            for probe in probes:
                count, threads = chance.randint(200, 1200), chance.randint(1, 2)
                probe.send(f"storm 0 {chance.getrandbits(32)} {count} {MIB} {threads}")
            # The instant of the kill is the seed's choice: mostly in the storm, sometimes before or after.
            select.select([], [], [], chance.uniform(0, 0.012))
            victim = probes.pop(chance.randrange(len(probes)))
            victim.kill()
            victim.wait_for_zombie()
            row = card.read().row_of(victim.pid)
            assert row is not None
            assert not row.alive
            for probe in probes:
                assert probe.answer().startswith("ok "), f"seed {seed}"
            check_held(card, probes)
            assert victim.process.wait() == -signal.SIGKILL
            probes.append(stack.enter_context(VcardProcess(card.path)))
    assert card.read().cards[0].used_bytes == 0
    with VcardProcess(card.path) as last:
        assert last.ask(f"alloc 0 {card.read().cards[0].capacity_bytes}").startswith("ok")


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_at_any_instant_loses_no_byte(tmp_path: Path, seed: int) -> None:
    with VirtualCard.create_in(tmp_path, spec(granularity_bytes=4096 if seed == 0 else 1)) as card:
        storm_and_kill(card, seed=seed, kill_count=20)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_hundreds_of_kills_lose_no_byte(tmp_path: Path, seed: int) -> None:
    with VirtualCard.create_in(tmp_path, spec(granularity_bytes=4096 if seed % 2 else 1)) as card:
        storm_and_kill(card, seed=seed, kill_count=100)


def test_a_zombie_has_returned_its_bytes(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, spec(1000)) as card, several(card, 2) as (first, second):
        first.number("alloc 0 900")
        assert second.ask("alloc 0 1000") == "refused"
        first.kill()
        first.wait_for_zombie()
        state = Path(f"/proc/{first.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        assert state == "Z"
        assert second.ask("alloc 0 1000") == "ok 1"
        row = card.read().row_of(first.pid)
        assert row is not None
        # Its last figures stay for whoever wants to know what it held.
        assert (row.alive, row.held_bytes(), row.holdings[0].peak_bytes) == (False, 0, 900)


def test_a_stopped_process_keeps_its_bytes(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, spec(1000)) as card, several(card, 2) as (first, second):
        first.number("alloc 0 900")
        os.kill(first.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        assert second.ask("alloc 0 101") == "refused"
        assert card.use().process_bytes == {first.pid: 900, second.pid: 0}


def test_a_forked_child_does_not_keep_the_parents_bytes(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, spec(1000)) as card, several(card, 2) as (first, second):
        first.number("alloc 0 900")
        child = first.number("fork")
        try:
            first.kill()
            first.wait_for_zombie()
            assert Path(f"/proc/{child}").is_dir()
            assert second.ask("alloc 0 1000") == "ok 1"
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_ordinary_end_returns_everything(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, spec(context_bytes=100)) as card, VcardProcess(card.path) as probe:
        probe.number("stream 0")
        probe.number("alloc 0 900")
        assert probe.process.stdin is not None
        probe.process.stdin.close()
        assert probe.process.wait() == 0
        assert card.read().cards[0].used_bytes == 0


def test_rows_of_the_dead_are_used_again_oldest_first(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, spec(1000)) as card:
        pids = []
        for _ in range(ROWS_MAX + 2):
            with VcardProcess(card.path) as probe:
                pids.append(probe.pid)
                probe.number("alloc 0 1000")
        assert [row.pid for row in card.read().processes] == pids[2:]
        assert card.read().cards[0].alloc_count == ROWS_MAX + 2


def test_a_full_ledger_says_so(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, spec()) as card, several(card, ROWS_MAX) as probes:
        with VcardProcess(card.path) as late:
            assert late.greeting.startswith(
                f"error no row of the virtual card's ledger {card.path} is free: "
                "64 living processes hold them all"
            )
        probes[0].kill()
        probes[0].wait_for_zombie()
        with VcardProcess(card.path) as later:
            assert later.greeting == f"ready {later.pid}"


def test_a_reader_killed_while_it_changes_words_blocks_nobody(tmp_path: Path) -> None:
    """The lock goes with the process; the odd edition it leaves is mended by the next writer."""
    kills_itself = (
        "import os, signal, sys; from pathlib import Path; from tidegate.runtime.cards.ledger_file import *\n"
        "with LedgerFile(Path(sys.argv[1])).changing() as store:\n"
        "    store(HEADER_WORDS['fail_count'], 1); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with VirtualCard.create_in(tmp_path, spec(1000)) as card, VcardProcess(card.path) as probe:
        ended = subprocess.run([sys.executable, "-c", kills_itself, card.path], check=False)
        assert ended.returncode == -signal.SIGKILL
        check_words(card.read())
        assert probe.ask("alloc 0 1000") == "ok 1"
        check_words(card.read())
        card.set_capacity(2000)
        assert probe.ask("alloc 0 1000") == "ok 2"


def test_every_change_is_a_new_even_edition(tmp_path: Path) -> None:
    """What lets readers without a lock notice that they read words of two moments."""
    with VirtualCard.create_in(tmp_path, spec()) as card, VcardProcess(card.path) as probe:
        editions = []
        for line in ("alloc 0 10", "alloc 0 10", "free 1", "pin 0 10", "label x"):
            probe.ask(line)
            with LedgerFile(card.path) as file:
                editions.append(file.snapshot().word(HEADER_WORDS["edition"]))
        assert editions == sorted(set(editions))
        assert all(edition % 2 == 0 for edition in editions)


def test_knobs_turned_during_a_storm_arrive_whole(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, spec()) as card, several(card, 2) as probes:
        for slot, probe in enumerate(probes):
            probe.send(f"storm 0 {slot} 3000 {MIB} 2")
        turns = 0
        # Foreign bytes come without asking, so that for a moment the card may hold more than it has.
        while any(not select.select([probe.process.stdout], [], [], 0)[0] for probe in probes):
            card.set_foreign(turns % 2 * MIB)
            card.reset_peaks()
            turns += 1
        assert turns > 0
        assert all(probe.answer().startswith("ok ") for probe in probes)
        card.set_foreign(0)
        card.reset_peaks()
        check_held(card, probes)
