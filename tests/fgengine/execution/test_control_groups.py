"""Limits of memory and cores from control group files in Linux's formats."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import pytest

from fgengine.execution import host_memory
from fgengine.execution.control_groups import core_limit
from fgengine.execution.host_memory import HostMemory, limits, within

GIB = 1024**3


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def process(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return tmp_path / "mount"


def test_version_2_counts_file_pages_as_free(process: Path, mount: Path) -> None:
    process.write_text("0::/app\n")
    stat = f"anon 77\ninactive_file {GIB}\nactive_file {GIB // 2}\nfile 99"
    write(mount / "app", memory__max=8 * GIB, memory__current=3 * GIB, memory__stat=stat)
    assert list(limits(process, mount)) == [HostMemory(6 * GIB + GIB // 2, 8 * GIB)]


def test_version_2_every_parent_group_limits_memory(process: Path, mount: Path) -> None:
    process.write_text("0::/slice/app\n")
    write(mount / "slice" / "app", memory__max="max", memory__current=GIB)
    write(mount / "slice", memory__max="max", memory__high=4 * GIB, memory__current=3 * GIB)
    write(mount, memory__max=16 * GIB, memory__current=2 * GIB)
    assert list(limits(process, mount)) == [HostMemory(GIB, 4 * GIB), HostMemory(14 * GIB, 16 * GIB)]


def test_version_1_limits_memory(process: Path, mount: Path) -> None:
    process.write_text("12:cpu,cpuacct:/x\n4:hugetlb,memory:/job\n0::/\n")
    stat = f"inactive_file 5\ntotal_inactive_file {GIB}\ntotal_active_file 0"
    here = mount / "memory" / "job"
    write(here, memory__limit_in_bytes=6 * GIB, memory__usage_in_bytes=5 * GIB, memory__stat=stat)
    write(mount / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=9 * GIB)
    found = list(limits(process, mount))
    assert found[0] == HostMemory(2 * GIB, 6 * GIB)
    assert within(HostMemory(20 * GIB, 24 * GIB), iter(found)) == HostMemory(2 * GIB, 6 * GIB)


def test_in_a_container_the_mount_itself_is_the_group(process: Path, mount: Path) -> None:
    process.write_text("9:memory:/docker/0123456789ab\n")
    write(mount / "memory", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB)
    assert list(limits(process, mount)) == [HostMemory(GIB, 2 * GIB)]


def test_no_memory_is_free_if_usage_exceeds_the_limit(process: Path, mount: Path) -> None:
    process.write_text("0::/\n")
    write(mount, memory__max=GIB, memory__current=2 * GIB, memory__stat="inactive_file x\nnonsense")
    assert list(limits(process, mount)) == [HostMemory(0, GIB)]


@pytest.mark.parametrize("text", [None, "", "nonsense", "0::/../../etc\n", "0::/gone\n"])
def test_without_groups_the_systems_memory_counts(process: Path, mount: Path, text: str | None) -> None:
    if text is not None:
        process.write_text(text)
    assert list(limits(process, mount)) == []
    assert within(HostMemory(5, 9), iter(())) == HostMemory(5, 9)


def test_host_memory_applies_the_limits_of_this_process(
    monkeypatch: pytest.MonkeyPatch, process: Path, mount: Path
) -> None:
    system = psutil.virtual_memory()
    assert 0 < host_memory.host_memory().free <= system.total
    process.write_text("0::/\n")
    write(mount, memory__max=GIB, memory__current=GIB // 4)
    monkeypatch.setattr(host_memory, "limits", lambda: limits(process, mount))
    assert host_memory.host_memory() == HostMemory(min(3 * GIB // 4, system.available), GIB)


def test_the_smallest_core_limit_of_all_groups_counts(process: Path, mount: Path) -> None:
    process.write_text("0::/slice/app\n")
    write(mount, cpu__max="max 100000")
    assert core_limit(process, mount) == math.inf
    write(mount / "slice", cpu__max="150000 100000")
    write(mount / "slice/app", cpu__max="max 100000")
    assert core_limit(process, mount) == 1.5
    write(mount / "slice/app", cpu__max="50000 100000")
    assert core_limit(process, mount) == 0.5


def test_a_containers_core_limit_is_read_at_the_mount(process: Path, mount: Path) -> None:
    process.write_text("0::/docker/0123abcd\n")
    write(mount, cpu__max="200000 100000")
    assert core_limit(process, mount) == 2.0


def test_version_1_limits_cores(process: Path, mount: Path) -> None:
    process.write_text("5:memory:/m\n4:cpu,cpuacct:/app\n")
    write(mount / "cpu/app", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert core_limit(process, mount) == 3.0
    write(mount / "cpu/app", cpu__cfs_quota_us="-1")
    assert core_limit(process, mount) == math.inf


@pytest.mark.parametrize("text", ["", "nonsense", "0 100000", "100000 0", "100000"])
def test_an_unreadable_core_limit_is_no_limit(process: Path, mount: Path, text: str) -> None:
    assert core_limit(process, mount) == math.inf
    process.write_text("0::/app\n")
    write(mount / "app", cpu__max=text)
    assert core_limit(process, mount) == math.inf
