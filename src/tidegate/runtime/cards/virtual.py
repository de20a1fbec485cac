"""Virtual cards: making one, reading it, and disturbing it.

Owns the meaning of a ledger's words and the presets. The file itself is `ledger_file`; the side that charges
bytes is the engine's backend in `native/vcard`. What is modelled and what is not is told in
docs/explanation/virtual-card.md.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self, assert_never

from tidegate.core.faults import ClientError
from tidegate.core.quantity import MIB
from tidegate.runtime.cards import ledger_file as layout
from tidegate.runtime.cards.descriptor import CardDescriptor, CardUse, Sight
from tidegate.runtime.cards.ledger_file import LedgerFile, Snapshot, card_at, holding_at, row_at
from tidegate.runtime.cards.sizes import parse_size, size_literal


class Preset(Enum):
    """What kind of card is played; `exact` charges bytes as asked, so that predictions need no rounding."""

    EXACT = "exact"
    CUDA = "cuda"


# Alignment 32 is ggml's on the CPU: a buffer on the exact card is as long as the same buffer in RAM.
# CUDA: alignment 128 and padding 512 are ggml-cuda's constants, 2 MiB is the driver's granularity. Context,
# pool and link speed are NOT YET CALIBRATED on a real card; they are plausible and only there to be felt.
PRESETS: Final[Mapping[Preset, Mapping[str, int]]] = MappingProxyType(
    {
        Preset.EXACT: MappingProxyType({"granularity_bytes": 1, "alignment_bytes": 32}),
        Preset.CUDA: MappingProxyType(
            {
                "granularity_bytes": 2 * MIB,
                "alignment_bytes": 128,
                "padding_elements": 512,
                "context_bytes": 300 * MIB,
                "pool_bytes": 32 * MIB,
                "pool_aborts": 1,
                "link_bytes_per_second": 12_000_000_000,
            }
        ),
    }
)
UNCALIBRATED: Final = "context, pool and link speed of the cuda preset are not yet calibrated on a real card"

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class VirtualSpec:
    """What to create: equal cards of a preset; `knobs` overrides words of a card's section by name."""

    capacity_bytes: int
    preset: Preset = Preset.EXACT
    card_count: int = 1
    flags: int = 0
    knobs: Mapping[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """The spec as `--device` takes it after `virtual:`; knobs have no such spelling."""
        parts = [size_literal(self.capacity_bytes)]
        if self.preset is not Preset.EXACT:
            parts.append(self.preset.value)
        if self.card_count != 1:
            parts.append(f"cards={self.card_count}")
        if self.flags & layout.FLAG_STRICT:
            parts.append("strict")
        if self.flags & layout.FLAG_POISON:
            parts.append("poison")
        return ",".join(parts)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What one process holds on one card; used is buffers + context + pools, pinned RAM stands apart."""

    used_bytes: int
    peak_bytes: int
    buffers_bytes: int
    buffers_peak_bytes: int
    context_bytes: int
    pool_bytes: int
    pinned_bytes: int
    alloc_count: int
    refused_count: int


@dataclass(frozen=True, kw_only=True)
class ProcessRow:
    """One process. A dead one holds nothing; its last figures stay readable until its row is reused."""

    pid: int
    claim: int
    label: str
    alive: bool
    holdings: tuple[Holding, ...]

    def held_bytes(self, *, card: int = 0) -> int:
        return self.holdings[card].used_bytes if self.alive else 0


@dataclass(frozen=True, kw_only=True)
class CardReading:
    """One card at one moment; `peak_bytes` includes foreign bytes, `tenants_peak_bytes` does not."""

    name: str
    capacity_bytes: int
    foreign_bytes: int
    tenants_bytes: int
    peak_bytes: int
    tenants_peak_bytes: int
    alloc_count: int
    refused_count: int

    @property
    def used_bytes(self) -> int:
        return self.tenants_bytes + self.foreign_bytes

    @property
    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.used_bytes)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The whole ledger at one moment."""

    cards: tuple[CardReading, ...]
    processes: tuple[ProcessRow, ...]
    allocation_count: int
    fired_count: int

    def row_of(self, pid: int) -> ProcessRow | None:
        """The newest row of a pid, alive or dead; None when it never came, or its row was reused."""
        rows = [row for row in self.processes if row.pid == pid]
        return max(rows, key=lambda row: row.claim, default=None)


class VirtualCard:
    """One ledger with its cards, open. The engine's side of the same file is `attach_virtual_card`."""

    def __init__(self, path: Path) -> None:
        """Open an existing ledger."""
        self._file = LedgerFile(path)

    @classmethod
    def create(cls, path: Path, spec: VirtualSpec) -> Self:
        """Write a new ledger at `path` and open it; an existing file is a ClientError."""
        _check(spec)
        words = {"capacity_bytes": spec.capacity_bytes, **PRESETS[spec.preset], **spec.knobs}
        cards = [(f"VCARD{index}", words) for index in range(spec.card_count)]
        layout.write_new(path, header={"flags": spec.flags}, cards=cards)
        return cls(path)

    @classmethod
    def create_in(cls, folder: Path, spec: VirtualSpec) -> Self:
        """Write a new ledger under a name of its own in `folder`, where those of the dead are swept away."""
        layout.sweep(folder)
        while True:
            path = folder / f"tidegate-{os.getpid()}-{next(_numbers)}.vcard"
            if path.exists():  # left by one who had our process id, or in another container
                continue
            card = cls.create(path, spec)
            card._file.hold()
            return card

    @property
    def path(self) -> Path:
        return self._file.path

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Close and unlink; processes that have it mapped keep their cards until they end."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # reading

    def read(self) -> Reading:
        """Everything at one moment, without holding up the processes on the card."""
        taken = self._file.snapshot()
        processes = tuple(
            _process(taken, row)
            for row in range(layout.ROWS_MAX)
            if taken.word(row_at(row) + layout.ROW_WORDS["claim"])
        )
        return Reading(
            cards=tuple(_card(taken, card, processes) for card in range(taken.card_count)),
            processes=tuple(sorted(processes, key=lambda row: row.claim)),
            allocation_count=taken.word(layout.HEADER_WORDS["allocation_count"]),
            fired_count=taken.word(layout.HEADER_WORDS["fired_count"]),
        )

    def use(self, *, card: int = 0) -> CardUse:
        """How full a card is, and which living process holds how much."""
        reading = self.read()
        self._check_card(card, len(reading.cards))
        return CardUse(
            total_bytes=reading.cards[card].capacity_bytes,
            free_bytes=reading.cards[card].free_bytes,
            process_bytes={row.pid: row.held_bytes(card=card) for row in reading.processes if row.alive},
        )

    def descriptor(self, *, card: int = 0) -> CardDescriptor:
        """What the card is; a later `set_capacity` needs a new one."""
        taken = self._file.snapshot()
        self._check_card(card, taken.card_count)
        return CardDescriptor(
            device=_name(taken, card),
            name="virtual card in host memory",
            total_bytes=taken.word(card_at(card, "capacity_bytes")),
            granularity_bytes=taken.word(card_at(card, "granularity_bytes")),
            largest_allocation_bytes=taken.word(card_at(card, "largest_allocation_bytes")),
            context_bytes=taken.word(card_at(card, "context_bytes")),
            pool_bytes=taken.word(card_at(card, "pool_bytes")),
            link_bytes_per_second=taken.word(card_at(card, "link_bytes_per_second")),
            unified=False,
            sight=Sight.PER_PROCESS,
        )

    # disturbing

    def set_capacity(self, capacity_bytes: int, *, card: int = 0) -> None:
        """Change a card's size while it is in use; below what is used, every allocation is refused."""
        self._set(card, {"capacity_bytes": _amount(capacity_bytes)})

    def set_foreign(self, foreign_bytes: int, *, card: int = 0) -> None:
        """Let somebody outside the ledger hold so many bytes."""
        self._set(card, {"foreign_bytes": _amount(foreign_bytes)})

    def plant_fault(self, first: int, *, count: int = 1) -> None:
        """Refuse `count` allocations from the `first` one on, counted from 1 at this call, over all cards."""
        if first < 1 or count < 1:
            raise ClientError(
                "A fault is planted at allocation 1 or later, and at one or more of them.", code="bad_fault"
            )
        self._set_header({"allocation_count": 0, "fired_count": 0, "fail_at": first, "fail_count": count})

    def clear_faults(self) -> None:
        """Refuse nothing on purpose any more; the counters stay readable."""
        self._set_header({"fail_at": 0, "fail_count": 0})

    def reset_allocation_count(self) -> None:
        """Count allocations and fired faults from zero again."""
        self._set_header({"allocation_count": 0, "fired_count": 0})

    def reset_peaks(self) -> None:
        """Let every peak be what is held now; rows of dead processes keep theirs."""
        with self._file.changing() as store:
            taken = self._file.take_inside()
            tenants = [0] * taken.card_count
            for row, card in itertools.product(sorted(taken.held_rows), range(taken.card_count)):
                tenants[card] += taken.word(holding_at(row, card, "used_bytes"))
                for now in ("used", "buffers"):
                    peak = "peak_bytes" if now == "used" else "buffers_peak_bytes"
                    store(holding_at(row, card, peak), taken.word(holding_at(row, card, f"{now}_bytes")))
            for card, held_bytes in enumerate(tenants):
                store(card_at(card, "tenants_peak_bytes"), held_bytes)
                store(card_at(card, "peak_bytes"), held_bytes + taken.word(card_at(card, "foreign_bytes")))

    def _set(self, card: int, words: Mapping[str, int]) -> None:
        self._check_card(card, self._file.snapshot().card_count)
        self._file.change({card_at(card, word): value for word, value in words.items()})

    def _set_header(self, words: Mapping[str, int]) -> None:
        self._file.change({layout.HEADER_WORDS[word]: value for word, value in words.items()})

    def _check_card(self, card: int, count: int) -> None:
        if not 0 <= card < count:
            raise ClientError(
                f"The ledger {self.path} has {count} cards, there is no card {card}.", code="no_such_card"
            )


def parse_virtual(text: str) -> VirtualSpec:
    """Read what follows `virtual:`: a size, then in any order a preset, `cards=N`, `strict`, `poison`."""
    size, *options = text.split(",")
    preset, card_count, flags = Preset.EXACT, 1, 0
    for option in (part.strip().lower() for part in options):
        match option:
            case "strict":
                flags |= layout.FLAG_STRICT
            case "poison":
                flags |= layout.FLAG_POISON
            case "exact" | "cuda":
                preset = Preset(option)
            case _ if option.startswith("cards=") and option[6:].isdecimal():
                card_count = int(option[6:])
            case _:
                raise ClientError(
                    f"A virtual card knows no option {option!r}.",
                    remedy="Options are exact, cuda, cards=N, strict and poison.",
                    code="bad_device",
                )
    spec = VirtualSpec(
        capacity_bytes=parse_size(size, what="card size"), preset=preset, card_count=card_count, flags=flags
    )
    _check(spec)
    return spec


def ledger_folder() -> Path:
    """Where ledgers of this user belong: in memory where there is such a folder, for they are read often."""
    for name in (os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"):
        if name and os.access(name, os.W_OK):
            return Path(name)
    return Path(tempfile.gettempdir())


def preset_notice(preset: Preset) -> str:
    """What a user should know about a preset's figures; empty when there is nothing."""
    match preset:
        case Preset.EXACT:
            return ""
        case Preset.CUDA:
            return UNCALIBRATED
    assert_never(preset)


def _check(spec: VirtualSpec) -> None:
    if not 1 <= spec.card_count <= layout.CARDS_MAX:
        raise ClientError(
            f"A ledger has 1 to {layout.CARDS_MAX} cards, not {spec.card_count}.", code="bad_device"
        )
    unknown = sorted(set(spec.knobs) - set(layout.CARD_WORDS))
    if unknown:
        raise ClientError(f"A virtual card has no knob {unknown[0]!r}.", code="bad_device")
    for value in (spec.capacity_bytes, *spec.knobs.values()):
        _amount(value)


def _amount(value: int) -> int:
    if not 0 <= value < 1 << 62:
        raise ClientError(f"{value} is no amount of bytes a card can have.", code="bad_size")
    return value


def _name(taken: Snapshot, card: int) -> str:
    return taken.text(card_at(card, "capacity_bytes") - 32, layout.CARD_NAME_MAX + 1)


def _process(taken: Snapshot, row: int) -> ProcessRow:
    start = row_at(row)
    holdings = (
        Holding(**{word: taken.word(holding_at(row, card, word)) for word in layout.HOLDING_WORDS})
        for card in range(taken.card_count)
    )
    return ProcessRow(
        pid=taken.word(start + layout.ROW_WORDS["pid"]),
        claim=taken.word(start + layout.ROW_WORDS["claim"]),
        label=taken.text(start + 32, layout.LABEL_MAX + 1),
        alive=row in taken.held_rows,
        holdings=tuple(holdings),
    )


def _card(taken: Snapshot, card: int, processes: tuple[ProcessRow, ...]) -> CardReading:
    words = (
        "capacity_bytes",
        "foreign_bytes",
        "peak_bytes",
        "tenants_peak_bytes",
        "alloc_count",
        "refused_count",
    )
    return CardReading(
        name=_name(taken, card),
        tenants_bytes=sum(row.held_bytes(card=card) for row in processes),
        **{word: taken.word(card_at(card, word)) for word in words},
    )
