"""Host RAM: the smaller of machine and control groups, on copies of what kernels show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.core.faults import CapacityError
from tidegate.core.quantity import GIB, MIB
from tidegate.runtime.cards.memory import HostMemory, read_host_memory

MACHINE = f"MemTotal: {16 * MIB} kB\nMemFree: {MIB} kB\nMemAvailable: {8 * MIB} kB\nHugePages_Total: 0\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MACHINE, "proc/self/cgroup": "0::/\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert read_host_memory(tree(tmp_path, {})) == HostMemory(
        total_bytes=16 * GIB, available_bytes=8 * GIB, limited_by="machine"
    )


def test_a_group_with_less_left_wins(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/user/job/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/user/job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    assert read_host_memory(tree(tmp_path, files)) == HostMemory(
        total_bytes=4 * GIB, available_bytes=2 * GIB, limited_by="/sys/fs/cgroup/user/job"
    )


def test_page_cache_counts_as_left_however_often_it_was_read(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/job/memory.current": f"{7 * GIB}\n",
        "sys/fs/cgroup/job/memory.stat": f"inactive_file {GIB}\nactive_file {4 * GIB}\nfile 9\n",
    }
    assert read_host_memory(tree(tmp_path, files)).available_bytes == 6 * GIB


def test_a_group_above_counts_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/user/memory.current": f"{2 * GIB}\n",
    }
    assert read_host_memory(tree(tmp_path, files)).available_bytes == 0


def test_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "12:cpu,cpuacct:/job\n5:memory:/job\n0::/job\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{6 * GIB}\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
    }
    reading = read_host_memory(tree(tmp_path, files))
    assert (reading.total_bytes, reading.available_bytes) == (6 * GIB, 11 * GIB // 2)


def test_a_container_that_sees_names_from_outside_uses_the_top(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/../../kubepods/pod7\n",
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.current": "0\n",
    }
    assert read_host_memory(tree(tmp_path, files)).available_bytes == 2 * GIB


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    with pytest.raises(CapacityError):
        read_host_memory(tree(tmp_path, {"proc/meminfo": "MemTotal: 1 kB\n"}))


def test_this_machine() -> None:
    reading = read_host_memory()
    assert 0 < reading.available_bytes <= reading.total_bytes
