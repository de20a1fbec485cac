"""Real cards: DRM on copies of what kernels show; NVML where there is a driver, else in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.core.quantity import GIB, MIB
from tidegate.runtime.cards.descriptor import Sight
from tidegate.runtime.cards.drm import describe, find_cards, read_use
from tidegate.runtime.cards.nvml import GRANULARITY_BYTES, NoNvml, Nvml, open_nvml

AMD = "0000:03:00.0"
INTEL = "0000:04:00.0"


def tree(root: Path) -> Path:
    """An AMD card, an Intel card of two tiles, an NVIDIA card and one without memory of its own."""
    files = {
        f"sys/devices/{AMD}/vendor": "0x1002\n",
        f"sys/devices/{AMD}/mem_info_vram_total": f"{16 * GIB}\n",
        f"sys/devices/{AMD}/mem_info_vram_used": f"{5 * GIB}\n",
        f"sys/devices/{INTEL}/vendor": "0x8086\n",
        f"sys/devices/{INTEL}/tile0/physical_vram_size_bytes": f"{6 * GIB}\n",
        f"sys/devices/{INTEL}/tile1/physical_vram_size_bytes": f"{6 * GIB}\n",
        "sys/devices/0000:05:00.0/vendor": "0x10de\n",
        "sys/devices/0000:00:02.0/vendor": "0x8086\n",
        "proc/10/fdinfo/3": f"drm-pdev:\t{AMD}\ndrm-client-id:\t7\ndrm-memory-vram:\t{MIB} KiB\n",
        "proc/10/fdinfo/4": f"drm-pdev:\t{AMD}\ndrm-client-id:\t7\ndrm-memory-vram:\t{MIB} KiB\n",
        "proc/10/fdinfo/5": f"drm-pdev:\t{AMD}\ndrm-client-id:\t8\ndrm-resident-vram:\t1 GiB\n",
        "proc/10/fdinfo/6": "pos:\t0\nflags:\t02\n",
        "proc/11/fdinfo/3": (
            f"drm-pdev:\t{INTEL}\ndrm-client-id:\t1\n"
            "drm-total-vram0:\t900 MiB\ndrm-resident-vram0:\t700 MiB\ndrm-resident-vram1:\t68 MiB\n"
        ),
        "proc/self/fdinfo/3": f"drm-pdev:\t{AMD}\ndrm-memory-vram:\t9 GiB\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, address in {
        "card10": AMD,
        "card2": INTEL,
        "card3": "0000:05:00.0",
        "card0": "0000:00:02.0",
        "card2-DP-1": INTEL,
    }.items():
        (root / "sys/class/drm" / name).mkdir(parents=True)
        (root / "sys/class/drm" / name / "device").symlink_to(root / "sys/devices" / address)
    return root


def test_cards_with_memory_of_their_own_are_found_in_order(tmp_path: Path) -> None:
    cards = find_cards(tree(tmp_path))
    assert [(card.pci_address, card.total_bytes) for card in cards] == [(INTEL, 12 * GIB), (AMD, 16 * GIB)]
    assert [describe(card, device="x").sight for card in cards] == [Sight.OWN_LEDGER, Sight.PER_CARD]
    assert describe(cards[1], device="rocm:0").name == f"AMD card at {AMD}"


def test_use_comes_from_the_driver_and_processes_from_fdinfo(tmp_path: Path) -> None:
    intel, amd = find_cards(tree(tmp_path))
    use = read_use(amd, root=tmp_path)
    assert (use.used_bytes, use.free_bytes, use.process_bytes) == (5 * GIB, 11 * GIB, {10: 2 * GIB})
    use = read_use(intel, root=tmp_path)
    assert (use.used_bytes, use.process_bytes) == (768 * MIB, {11: 768 * MIB})


def test_a_machine_without_cards(tmp_path: Path) -> None:
    assert find_cards(tmp_path) == []


def test_nvml_answers_or_says_why_not() -> None:
    session = open_nvml()
    if isinstance(session, NoNvml):
        assert session.reason == "nvidia-ml-py is not installed" or session.reason.startswith(
            "no NVIDIA driver"
        )
        return
    with session:
        check_nvml(session)


@pytest.mark.needs("real_card")
def test_a_real_card_is_found() -> None:
    session = open_nvml()
    if isinstance(session, NoNvml):
        assert find_cards(), f"{session.reason}, and the kernel shows no other card"
        return
    with session:
        assert session.card_count() > 0
        check_nvml(session)


def check_nvml(session: Nvml) -> None:
    for card in range(session.card_count()):
        described, use = session.descriptor(card), session.use(card)
        assert described.granularity_bytes == GRANULARITY_BYTES
        assert 0 < use.free_bytes <= use.total_bytes == described.total_bytes
        assert sum(use.process_bytes.values()) <= use.used_bytes
