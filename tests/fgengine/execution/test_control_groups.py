"""Limits of cores, from files as Linux writes them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fgengine.execution.control_groups import core_limit


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def process(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return tmp_path / "mount"


def test_version_2_the_tightest_group_binds(process: Path, mount: Path) -> None:
    process.write_text("0::/slice/app\n")
    write(mount, cpu__max="max 100000")
    assert core_limit(process, mount) == math.inf
    write(mount / "slice", cpu__max="150000 100000")
    write(mount / "slice/app", cpu__max="max 100000")
    assert core_limit(process, mount) == 1.5
    write(mount / "slice/app", cpu__max="50000 100000")
    assert core_limit(process, mount) == 0.5


def test_a_container_sees_its_own_group_at_the_mount(process: Path, mount: Path) -> None:
    process.write_text("0::/docker/0123abcd\n")
    write(mount, cpu__max="200000 100000")
    assert core_limit(process, mount) == 2.0


def test_version_1(process: Path, mount: Path) -> None:
    process.write_text("5:memory:/m\n4:cpu,cpuacct:/app\n")
    write(mount / "cpu/app", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert core_limit(process, mount) == 3.0
    write(mount / "cpu/app", cpu__cfs_quota_us="-1")
    assert core_limit(process, mount) == math.inf


@pytest.mark.parametrize("said", ["", "nonsense", "0 100000", "100000 0", "100000"])
def test_what_cannot_be_read_is_no_limit(process: Path, mount: Path, said: str) -> None:
    assert core_limit(process, mount) == math.inf
    process.write_text("0::/app\n")
    write(mount / "app", cpu__max=said)
    assert core_limit(process, mount) == math.inf
