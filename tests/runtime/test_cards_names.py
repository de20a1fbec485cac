"""Sizes and devices as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tidegate.core.faults import ClientError
from tidegate.core.quantity import GIB, KIB, MIB
from tidegate.runtime.cards.device import (
    AutoDevice,
    CardApi,
    CpuDevice,
    Device,
    RealDevice,
    VirtualDevice,
    parse_device,
)
from tidegate.runtime.cards.ledger_file import CARDS_MAX, FLAG_POISON, FLAG_STRICT
from tidegate.runtime.cards.sizes import SIZE_MAX, parse_size, size_literal
from tidegate.runtime.cards.virtual import Preset, VirtualSpec, preset_notice


@pytest.mark.parametrize(
    ("text", "amount_bytes"),
    [
        ("1", 1),
        ("17B", 17),
        ("4k", 4 * KIB),
        ("4 KiB", 4 * KIB),
        ("512m", 512 * MIB),
        ("3GiB", 3 * GIB),
        (" 3 gib ", 3 * GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("1.5 GB", 1_500_000_000),
        ("1PiB", None),
        ("0", None),
        ("0GiB", None),
        ("-1GiB", None),
        ("1.5", None),
        ("0.3KiB", None),
        ("three", None),
        ("3 GiB 4", None),
        ("", None),
        ("9999999TiB", None),
    ],
)
def test_sizes(text: str, amount_bytes: int | None) -> None:
    if amount_bytes is not None:
        assert parse_size(text) == amount_bytes
        return
    with pytest.raises(ClientError) as refused:
        parse_size(text)
    assert refused.value.remedy == "Write a number and a unit, such as 3GiB or 512MiB."


@given(some.integers(1, SIZE_MAX))
def test_a_literal_reads_back_exactly(amount_bytes: int) -> None:
    assert parse_size(size_literal(amount_bytes)) == amount_bytes


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", AutoDevice()),
        ("CPU", CpuDevice()),
        ("cuda:0", RealDevice(CardApi.CUDA, 0)),
        ("cuda", RealDevice(CardApi.CUDA, 0)),
        (" Vulkan:3 ", RealDevice(CardApi.VULKAN, 3)),
        ("rocm:1", RealDevice(CardApi.ROCM, 1)),
        ("virtual:3GiB", VirtualDevice(VirtualSpec(capacity_bytes=3 * GIB))),
        ("virtual:3GiB,cuda", VirtualDevice(VirtualSpec(capacity_bytes=3 * GIB, preset=Preset.CUDA))),
        (
            "virtual:512m,strict,poison,cards=2",
            VirtualDevice(
                VirtualSpec(capacity_bytes=512 * MIB, card_count=2, flags=FLAG_STRICT | FLAG_POISON)
            ),
        ),
    ],
)
def test_devices(text: str, device: Device) -> None:
    parsed = parse_device(text)
    assert parsed == device
    assert parse_device(str(parsed)) == device


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "There is no device 'gpu'. Write auto, cpu, cuda:0, vulkan:0, rocm:0 or virtual:3GiB."),
        ("", "There is no device ''."),
        ("cpu:1", "There is no device 'cpu:1'."),
        ("auto:", "There is no device 'auto:'."),
        ("cuda:", "The device 'cuda:' names no card by its number. Numbers go from 0 to 63, as in cuda:0."),
        ("cuda:-1", "The device 'cuda:-1' names no card by its number."),
        ("cuda:64", "The device 'cuda:64' names no card by its number."),
        ("cuda:\u0663", "names no card by its number."),
        ("virtual", "A virtual card needs a size. Write for example virtual:3GiB."),
        ("virtual:", "A virtual card needs a size."),
        ("virtual:big", "'big' is no card size."),
        ("virtual:3GiB,fast", "A virtual card knows no option 'fast'. Options are exact, cuda, cards=N,"),
        ("virtual:3GiB,cards=0", f"A ledger has 1 to {CARDS_MAX} cards, not 0."),
        ("virtual:3GiB,cards=9", f"A ledger has 1 to {CARDS_MAX} cards, not 9."),
        ("virtual:3GiB,cards=two", "A virtual card knows no option 'cards=two'."),
    ],
)
def test_devices_that_are_none_are_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ClientError) as refused:
        parse_device(text)
    assert words in str(refused.value)


def test_engine_names() -> None:
    assert RealDevice(CardApi.CUDA, 1).engine_name == "CUDA1"
    assert RealDevice(CardApi.VULKAN, 0).engine_name == "Vulkan0"
    assert CpuDevice().engine_name == "CPU"
    assert VirtualDevice(VirtualSpec(capacity_bytes=1)).engine_name == "VCARD0"


def test_a_preset_that_is_not_calibrated_says_so() -> None:
    assert preset_notice(Preset.EXACT) == ""
    assert "not yet calibrated on a real card" in preset_notice(Preset.CUDA)
