"""One process on a virtual card: what the card grants, rounds, refuses, forbids and computes."""

from __future__ import annotations

import signal
import struct
import time
from pathlib import Path

import pytest

from tidegate.core.quantity import GIB, MIB
from tidegate.runtime.cards import ledger_file
from tidegate.runtime.cards.virtual import Holding, Preset, VirtualCard, VirtualSpec, parse_virtual
from vcard_process import VcardProcess


def exact(
    capacity_bytes: int = 64 * MIB, *, flags: int = 0, card_count: int = 1, **knobs: int
) -> VirtualSpec:
    return VirtualSpec(capacity_bytes=capacity_bytes, flags=flags, card_count=card_count, knobs=knobs)


def holding_of(card: VirtualCard, probe: VcardProcess, *, index: int = 0) -> Holding:
    row = card.read().row_of(probe.pid)
    assert row is not None
    assert row.alive
    return row.holdings[index]


def test_every_byte_is_charged_and_returned(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        assert probe.greeting == f"ready {probe.pid}"
        small, large = probe.number("alloc 0 1"), probe.number("alloc 0 1000003")
        assert holding_of(card, probe).used_bytes == 1000004
        assert probe.ask(f"free {large}") == "ok"
        assert probe.ask(f"free {small}") == "ok"
        held = holding_of(card, probe)
        assert (held.used_bytes, held.peak_bytes, held.buffers_peak_bytes) == (0, 1000004, 1000004)
        assert card.read().cards[0].peak_bytes == 1000004


def test_the_engine_sees_a_card_with_its_figures(tmp_path: Path) -> None:
    with (
        VirtualCard.create_in(tmp_path, parse_virtual("1GiB,cuda")) as card,
        VcardProcess(card.path) as probe,
    ):
        described = card.descriptor()
        name, granularity, context, pool, alignment, _, free, total = probe.ask("info 0").split()[1:]
        assert name == described.device == "VCARD0"
        assert int(granularity) == described.granularity_bytes == 2 * MIB
        assert int(context) == described.context_bytes == 300 * MIB
        assert (int(pool), int(alignment)) == (32 * MIB, 128)
        assert int(free) == int(total) == described.total_bytes == GIB


def test_exactly_the_capacity_fits_and_not_one_byte_more(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact(10_000)) as card, VcardProcess(card.path) as probe:
        assert probe.ask("alloc 0 10001") == "refused"
        assert probe.ask("alloc 0 10000") == "ok 1"
        assert probe.ask("alloc 0 1") == "refused"
        held = holding_of(card, probe)
        assert (held.used_bytes, held.alloc_count, held.refused_count) == (10_000, 1, 2)


def test_a_charge_is_rounded_up_to_the_granularity(tmp_path: Path) -> None:
    spec = exact(8 * MIB, granularity_bytes=2 * MIB)
    with VirtualCard.create_in(tmp_path, spec) as card, VcardProcess(card.path) as probe:
        small = probe.number("alloc 0 1")
        assert holding_of(card, probe).used_bytes == 2 * MIB
        probe.number(f"alloc 0 {2 * MIB + 1}")
        assert holding_of(card, probe).used_bytes == 6 * MIB == probe.number("held 0")
        assert probe.ask(f"alloc 0 {2 * MIB + 1}") == "refused"
        assert probe.ask(f"alloc 0 {2 * MIB}").startswith("ok")
        assert probe.ask(f"free {small}") == "ok"
        assert holding_of(card, probe).used_bytes == 6 * MIB


def test_foreign_bytes_and_capacity_change_while_the_card_is_in_use(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact(1000)) as card, VcardProcess(card.path) as probe:
        card.set_foreign(700)
        assert probe.ask("alloc 0 301") == "refused"
        assert probe.ask("alloc 0 300") == "ok 1"
        card.set_capacity(500)
        reading = card.read().cards[0]
        assert (reading.used_bytes, reading.free_bytes) == (1000, 0)
        assert probe.ask("alloc 0 1") == "refused"
        card.set_foreign(0)
        assert probe.ask("alloc 0 200") == "ok 2"


def test_the_largest_allocation_is_a_limit_of_its_own(tmp_path: Path) -> None:
    spec = exact(largest_allocation_bytes=1000)
    with VirtualCard.create_in(tmp_path, spec) as card, VcardProcess(card.path) as probe:
        assert probe.ask("alloc 0 1001") == "refused"
        assert probe.ask("alloc 0 1000").startswith("ok")
        assert probe.ask("info 0").split()[6] == "1000"


def test_a_context_is_charged_once_and_kept_until_the_process_ends(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact(context_bytes=MIB)) as card:
        with VcardProcess(card.path) as probe:
            assert holding_of(card, probe).used_bytes == 0
            first, second = probe.number("stream 0"), probe.number("stream 0")
            assert holding_of(card, probe).context_bytes == MIB == holding_of(card, probe).used_bytes
            probe.ask(f"close {first}")
            probe.ask(f"close {second}")
            assert holding_of(card, probe).used_bytes == MIB
            assert holding_of(card, probe).buffers_peak_bytes == 0
        assert card.read().cards[0].used_bytes == 0


def test_a_context_that_does_not_fit_gives_no_stream(tmp_path: Path) -> None:
    with (
        VirtualCard.create_in(tmp_path, exact(MIB, context_bytes=2 * MIB)) as card,
        VcardProcess(card.path) as probe,
    ):
        assert probe.ask("stream 0") == "refused"
        card.set_capacity(2 * MIB)
        assert probe.ask("stream 0").startswith("ok")


def test_a_pool_is_charged_at_the_first_compute_and_freed_with_its_stream(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact(pool_bytes=MIB)) as card, VcardProcess(card.path) as probe:
        stream = probe.number("stream 0")
        assert holding_of(card, probe).pool_bytes == 0
        assert probe.ask(f"compute {stream} 1000") == "ok 3000"
        assert probe.ask(f"compute {stream} 10") == "ok 30"
        assert holding_of(card, probe).pool_bytes == MIB == holding_of(card, probe).used_bytes
        probe.ask(f"close {stream}")
        assert holding_of(card, probe).used_bytes == 0


def test_a_pool_that_does_not_fit_fails_the_compute_or_aborts(tmp_path: Path) -> None:
    mild, harsh = exact(MIB, pool_bytes=2 * MIB), exact(MIB, pool_bytes=2 * MIB, pool_aborts=1)
    with VirtualCard.create_in(tmp_path, mild) as card, VcardProcess(card.path) as probe:
        assert probe.ask(f"compute {probe.number('stream 0')} 10").startswith("failed")
        assert holding_of(card, probe).used_bytes == 0
    with VirtualCard.create_in(tmp_path, harsh) as card, VcardProcess(card.path) as probe:
        assert probe.ask(f"compute {probe.number('stream 0')} 10") == ""
        assert probe.process.wait() == -signal.SIGABRT
        assert card.read().cards[0].used_bytes == 0


def test_every_planted_fault_fires_once_at_its_place(tmp_path: Path) -> None:
    """Context, buffer, pool: the allocations of a stream and a compute, each refused in turn."""
    spec = exact(context_bytes=1000, pool_bytes=1000)
    with VirtualCard.create_in(tmp_path, spec) as card:
        card.plant_fault(1000)
        with VcardProcess(card.path) as probe:
            assert probe.ask(f"compute {probe.number('stream 0')} 10") == "ok 30"
        found_count = card.read().allocation_count
        assert found_count == 3
        answers = []
        for place in range(1, found_count + 1):
            card.plant_fault(place)
            with VcardProcess(card.path) as probe:
                stream = probe.ask("stream 0")
                answers.append(
                    stream if stream == "refused" else probe.ask(f"compute {stream.split()[1]} 10")
                )
                assert card.read().fired_count == 1
            assert card.read().cards[0].used_bytes == 0
        assert answers == ["refused", "refused", "failed -2"]
        card.clear_faults()
        with VcardProcess(card.path) as probe:
            assert probe.ask(f"compute {probe.number('stream 0')} 10") == "ok 30"


def test_faults_in_a_row(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        probe.number("alloc 0 10")
        card.plant_fault(2, count=3)
        said = [probe.ask("alloc 0 10").split()[0] for _ in range(6)]
        assert said == ["ok", "refused", "refused", "refused", "ok", "ok"]
        assert card.read().fired_count == 3


def test_several_cards_are_charged_apart(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact(1000, card_count=3)) as card, VcardProcess(card.path) as probe:
        assert [reading.name for reading in card.read().cards] == ["VCARD0", "VCARD1", "VCARD2"]
        probe.number("alloc 0 600")
        probe.number("alloc 2 1000")
        card.set_foreign(1000, card=1)
        assert [probe.ask(f"alloc {index} 400").split()[0] for index in range(3)] == [
            "ok",
            "refused",
            "refused",
        ]
        assert [reading.tenants_bytes for reading in card.read().cards] == [1000, 0, 1000]
        assert probe.ask("info 3") == "error no such card"


def test_data_arrives_unchanged_on_one_card_and_across_two(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact(card_count=2)) as card, VcardProcess(card.path) as probe:
        assert probe.ask("roundtrip 0 1000003") == "ok"
        assert probe.ask("cross 0 1 1000003") == "ok"
        assert [reading.tenants_bytes for reading in card.read().cards] == [0, 0]


def test_strict_mode_faults_on_host_access_and_on_nothing_else(tmp_path: Path) -> None:
    spec = exact(flags=ledger_file.FLAG_STRICT, card_count=2)
    with VirtualCard.create_in(tmp_path, spec) as card, VcardProcess(card.path) as probe:
        buffer = probe.number("alloc 0 100000")
        assert probe.ask("roundtrip 0 100000") == "ok"
        assert probe.ask("cross 0 1 100000") == "ok"
        assert probe.ask(f"compute {probe.number('stream 0')} 1000") == "ok 3000"
        assert probe.ask(f"touch {buffer}") == ""
        assert probe.process.wait() == -signal.SIGSEGV


def test_without_strict_mode_the_host_may_look(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        assert probe.ask(f"touch {probe.number('alloc 0 100')}") == "ok 0"


def test_poison_fills_fresh_memory_with_nan(tmp_path: Path) -> None:
    spec = exact(flags=ledger_file.FLAG_POISON)
    with VirtualCard.create_in(tmp_path, spec) as card, VcardProcess(card.path) as probe:
        assert probe.ask("fresh 0 100") == "ok 255"
    assert struct.unpack("<f", b"\xff" * 4)[0] != struct.unpack("<f", b"\xff" * 4)[0]


def test_untouched_memory_costs_the_host_nothing(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact(1 << 40)) as card, VcardProcess(card.path) as probe:
        for _ in range(8):
            probe.number(f"alloc 0 {64 * GIB}")
        assert holding_of(card, probe).used_bytes == 512 * GIB


def test_quantised_rows_are_padded_as_on_cuda(tmp_path: Path) -> None:
    spec = VirtualSpec(capacity_bytes=GIB, preset=Preset.CUDA)
    with VirtualCard.create_in(tmp_path, spec) as card, VcardProcess(card.path) as probe:
        assert probe.number("padded 0 q8_0 32") == 512 // 32 * 34
        assert probe.number("padded 0 q8_0 512") == 512 // 32 * 34
        assert probe.number("padded 0 f16 32") == 64
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        assert probe.number("padded 0 q8_0 32") == 34


def test_pinned_memory_is_told_and_not_charged(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        pinned = probe.number("pin 0 4096")
        held = holding_of(card, probe)
        assert (held.pinned_bytes, held.used_bytes) == (4096, 0)
        probe.ask(f"free {pinned}")
        assert holding_of(card, probe).pinned_bytes == 0


def test_transfers_take_the_time_of_the_link(tmp_path: Path) -> None:
    spec = exact(link_bytes_per_second=100_000_000)
    with VirtualCard.create_in(tmp_path, spec) as card, VcardProcess(card.path) as probe:
        began = time.perf_counter()
        assert probe.ask("roundtrip 0 10000000") == "ok"
        # There and back, 0.1 s each; the copy on the card is free.
        assert time.perf_counter() - began >= 0.2


def test_peaks_can_be_measured_anew(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        large, _ = probe.number("alloc 0 1000"), probe.number("alloc 0 10")
        probe.ask(f"free {large}")
        card.set_foreign(5)
        card.reset_peaks()
        reading, held = card.read().cards[0], holding_of(card, probe)
        assert (reading.peak_bytes, reading.tenants_peak_bytes) == (15, 10)
        assert (held.peak_bytes, held.buffers_peak_bytes) == (10, 10)
        probe.number("alloc 0 7")
        assert holding_of(card, probe).peak_bytes == 17


def test_a_process_is_known_by_its_label(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        row = card.read().row_of(probe.pid)
        assert row is not None
        assert row.label == "vcard_probe"
        probe.ask("label image worker, job 7")
        row = card.read().row_of(probe.pid)
        assert row is not None
        assert row.label == "image worker, job 7"


def test_a_host_compiled_apart_is_refused_in_words(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        build = probe.ask("build").removeprefix("ok ")
        assert build.startswith("ggml ")
        assert " name=128 tensor=" in build
        assert probe.ask("misfit") == (
            "error host and virtual card were compiled apart: the host has [ggml 0.0.0 name=64], "
            f"the card has [{build}]; build both from the same tree"
        )


def test_a_process_has_one_ledger(tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, exact()) as card, VcardProcess(card.path) as probe:
        assert probe.ask(f"attach {card.path}") == "ok"
        assert probe.ask("attach /elsewhere") == (
            f"error this process is attached to the ledger {card.path} already "
            "and cannot attach to /elsewhere"
        )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:5000], "is 5000 bytes long, a virtual card's ledger has 81920: it was cut off"),
        (lambda _: b"", "is 0 bytes long, a virtual card's ledger has 81920: it was cut off"),
        (lambda data: b"x" * len(data), "is not a virtual card's ledger, or was never finished"),
        (lambda data: data[:8] + b"\x07" + data[9:], "is a ledger of version 7, this engine reads version 1"),
        (lambda data: data[:12] + b"\x09" + data[13:], "names 9 cards and 64 rows, which no ledger has"),
        (
            lambda data: data[:4144] + bytes(8) + data[4152:],
            "gives card 0 a granularity of 0 and an alignment of 32",
        ),
        (None, "cannot be opened: No such file or directory"),
    ],
)
def test_a_damaged_ledger_is_refused_in_one_sentence(tmp_path: Path, damage: object, words: str) -> None:
    path = tmp_path / "card"
    with VirtualCard.create(path, exact()) as card:
        data = card.path.read_bytes()
    if callable(damage):
        path.write_bytes(damage(data))
    else:
        path.unlink()
    with VcardProcess(path) as probe:
        assert probe.greeting.startswith("error ")
        assert words in probe.greeting
        assert str(path) in probe.greeting
        assert probe.process.wait() == 2
