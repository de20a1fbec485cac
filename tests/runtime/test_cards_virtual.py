"""The ledger file from Python alone: made whole, read whole, changed whole.

Processes on it are in tests/native/test_vcard_card.py and test_vcard_ledger.py.
"""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tidegate.core.faults import ClientError
from tidegate.core.quantity import GIB, MIB
from tidegate.runtime.cards.descriptor import CardDescriptor, CardUse, Sight
from tidegate.runtime.cards.ledger_file import FILE_BYTES, HEADER_WORDS, LedgerFile
from tidegate.runtime.cards.virtual import Preset, VirtualCard, VirtualSpec, ledger_folder

SPEC = VirtualSpec(capacity_bytes=3 * GIB)


def test_a_new_card_is_empty_and_described(tmp_path: Path) -> None:
    with VirtualCard.create(tmp_path / "card", VirtualSpec(capacity_bytes=GIB, preset=Preset.CUDA)) as card:
        reading = card.read()
        assert reading.processes == ()
        assert (reading.allocation_count, reading.fired_count) == (0, 0)
        assert reading.cards[0].free_bytes == GIB
        assert card.use() == CardUse(total_bytes=GIB, free_bytes=GIB, process_bytes={})
        assert card.descriptor() == CardDescriptor(
            device="VCARD0",
            name="virtual card in host memory",
            total_bytes=GIB,
            granularity_bytes=2 * MIB,
            largest_allocation_bytes=0,
            context_bytes=300 * MIB,
            pool_bytes=32 * MIB,
            link_bytes_per_second=12_000_000_000,
            unified=False,
            sight=Sight.PER_PROCESS,
        )
        assert card.descriptor().rounded_bytes(2 * MIB + 1) == 4 * MIB
    assert (tmp_path / "card").stat().st_size == FILE_BYTES
    assert (tmp_path / "card").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["card"]


def test_what_one_opens_another_sees(tmp_path: Path) -> None:
    with VirtualCard.create(tmp_path / "card", SPEC) as first, VirtualCard(first.path) as second:
        first.set_foreign(GIB)
        first.set_capacity(2 * GIB)
        assert second.read().cards[0].free_bytes == GIB
        first.set_foreign(5 * GIB)
        assert (second.read().cards[0].used_bytes, second.use().free_bytes) == (5 * GIB, 0)


def test_faults_are_planted_and_cleared(tmp_path: Path) -> None:
    with VirtualCard.create(tmp_path / "card", SPEC) as card, LedgerFile(card.path) as file:
        card.plant_fault(3, count=2)
        taken = file.snapshot()
        assert [taken.word(HEADER_WORDS[word]) for word in ("fail_at", "fail_count")] == [3, 2]
        card.clear_faults()
        card.reset_allocation_count()
        taken = file.snapshot()
        assert [taken.word(HEADER_WORDS[word]) for word in ("fail_at", "fail_count")] == [0, 0]
        for first, count in ((0, 1), (1, 0)):
            with pytest.raises(ClientError):
                card.plant_fault(first, count=count)


def test_an_existing_ledger_is_never_overwritten(tmp_path: Path) -> None:
    with VirtualCard.create(tmp_path / "card", SPEC) as card:
        card.set_foreign(7)
        with pytest.raises(ClientError, match="exists already"):
            VirtualCard.create(card.path, SPEC)
        assert card.read().cards[0].foreign_bytes == 7
    assert [path.name for path in tmp_path.iterdir()] == ["card"]


def test_two_cards_of_one_folder_have_names_of_their_own(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, SPEC) as first, VirtualCard.create_in(tmp_path, SPEC) as second:
        assert first.path != second.path
        first.remove()
        second.remove()
    assert list(tmp_path.iterdir()) == []


def test_removing_twice_is_removing_once(tmp_path: Path) -> None:
    card = VirtualCard.create_in(tmp_path, SPEC)
    card.remove()
    card.remove()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], f"is {FILE_BYTES - 1} bytes long, a virtual card's ledger has {FILE_BYTES}"),
        (lambda _: b"", f"is 0 bytes long, a virtual card's ledger has {FILE_BYTES}"),
        (lambda data: bytes(len(data)), "is not a virtual card's ledger, or was never finished."),
        (lambda data: data[:8] + b"\x02" + data[9:], "of version 2, this tidegate reads version 1."),
        (lambda data: data[:12] + bytes(4) + data[16:], "names 0 cards and 64 rows, which no ledger has."),
    ],
)
def test_a_damaged_ledger_is_refused_in_one_sentence(tmp_path: Path, damage: object, words: str) -> None:
    path = tmp_path / "card"
    VirtualCard.create(path, SPEC).close()
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ClientError) as refused:
        VirtualCard(path)
    assert words in refused.value.message
    assert refused.value.remedy == "Remove it and create the virtual card anew."


def test_a_ledger_that_is_missing_or_cannot_be_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="cannot be opened: No such file or directory"):
        VirtualCard(tmp_path / "card")
    with pytest.raises(ClientError, match="cannot be created: No such file or directory"):
        VirtualCard.create(tmp_path / "nowhere" / "card", SPEC)


@pytest.mark.parametrize(
    "spec",
    [
        VirtualSpec(capacity_bytes=-1),
        VirtualSpec(capacity_bytes=1 << 63),
        VirtualSpec(capacity_bytes=1, card_count=0),
        VirtualSpec(capacity_bytes=1, knobs={"colour": 1}),
        VirtualSpec(capacity_bytes=1, knobs={"pool_bytes": -1}),
    ],
)
def test_a_card_that_cannot_be_is_not_made(tmp_path: Path, spec: VirtualSpec) -> None:
    with pytest.raises(ClientError):
        VirtualCard.create(tmp_path / "card", spec)
    assert list(tmp_path.iterdir()) == []


def test_a_card_that_is_not_there(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, SPEC) as card:
        for ask in (
            lambda: card.use(card=1),
            lambda: card.descriptor(card=-1),
            lambda: card.set_foreign(1, card=8),
            lambda: card.set_capacity(-1),
        ):
            with pytest.raises(ClientError):
                ask()


def test_a_reader_sees_all_of_a_change_or_nothing(tmp_path: Path) -> None:
    """Two words that are always changed together are never seen apart, whoever writes and reads."""
    pair = HEADER_WORDS["fail_at"], HEADER_WORDS["fail_count"]
    with VirtualCard.create_in(tmp_path, SPEC) as card:

        def write(start: int) -> None:
            with LedgerFile(card.path) as own:
                for value in range(start, start + 300):
                    own.change(dict.fromkeys(pair, value))

        writers = [threading.Thread(target=write, args=(1000 * number,)) for number in range(3)]
        for writer in writers:
            writer.start()
        seen = set()
        with LedgerFile(card.path) as file:
            while any(writer.is_alive() for writer in writers):
                taken = file.snapshot()
                first, second = (taken.word(at) for at in pair)
                assert first == second
                seen.add(first)
        for writer in writers:
            writer.join()
        assert len(seen) > 1


def test_ledgers_lie_where_they_may_be_written() -> None:
    assert ledger_folder().is_dir()


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_a_ledger_under_our_process_id_is_passed_by(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, SPEC) as first:
        number = int(first.path.stem.rpartition("-")[2])
        stale = tmp_path / f"tidegate-{os.getpid()}-{number + 1}.vcard"
        stale.write_bytes(b"")
        with VirtualCard.create_in(tmp_path, SPEC) as second:
            assert second.path.name == f"tidegate-{os.getpid()}-{number + 2}.vcard"


def test_ledgers_of_the_dead_are_swept_away(tmp_path: Path) -> None:
    pid = dead_pid()
    (tmp_path / f"tidegate-{pid}-1.vcard").write_bytes(b"")
    (tmp_path / f"tidegate-{pid}-1.vcard.{pid}.1.draft").write_bytes(b"")
    (tmp_path / "tidegate-mine.vcard").write_bytes(b"")
    # One from another container: its number is nobody's here, but it is held.
    with VirtualCard.create_in(tmp_path, SPEC) as foreign:
        held = tmp_path / f"tidegate-{pid}-2.vcard"
        foreign.path.rename(held)
        with VirtualCard.create_in(tmp_path, SPEC) as card:
            assert {path.name for path in tmp_path.iterdir()} == {
                "tidegate-mine.vcard",
                held.name,
                card.path.name,
            }
    with VirtualCard.create_in(tmp_path, SPEC):
        assert not held.exists()
