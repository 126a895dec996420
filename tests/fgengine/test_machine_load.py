"""The load of other programs on the machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fgengine import machine_load
from fgengine.machine_load import Sample, core_seconds, family, load_between, sample

HOG = [sys.executable, "-c", "while True: pass"]


def spent(user: float = 0.0, **more: float) -> SimpleNamespace:
    return SimpleNamespace(user=user, nice=0.0, system=0.0, idle=9e9, iowait=9e9, **more)


def test_only_our_cores_count_and_idle_time_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_load, "our_cores", lambda: frozenset({0, 2}))
    cores = [
        spent(10.0, irq=1.0, softirq=2.0, steal=4.0, guest=5.0),
        spent(1000.0, irq=0.0, softirq=0.0, steal=1000.0),
        spent(30.0),  # some systems report fewer times
    ]
    monkeypatch.setattr(machine_load.psutil, "cpu_times", lambda percpu: cores)
    assert core_seconds() == (43.0, 4.0)


def test_a_family_is_its_roots_and_all_their_descendants() -> None:
    parents = {1: 0, 2: 1, 3: 2, 4: 3, 5: 1, 6: 5, 0: 0}
    assert family([2], parents) == {2, 3, 4}
    assert family([3, 5], parents) == {3, 4, 5, 6}
    assert family([99], parents) == {99}
    assert family([0], parents) == set(parents)


BEFORE = Sample(10.0, 100.0, 1.0, {7: ("old", 50.0), 8: ("idle", 3.0)}, 20.0, frozenset({5}), 2.0, 3000.0)


def test_a_load_is_the_time_of_others_between_two_samples() -> None:
    after = Sample(
        20.0,
        119.0,
        2.0,
        {7: ("old", 52.0), 8: ("idle", 3.0), 9: ("new", 7.0)},
        30.0,
        frozenset(),
        3.0,
        2500.0,
    )
    load = load_between(BEFORE, after)
    assert load.seconds == 10.0
    assert load.other_cores == pytest.approx(0.9)
    assert load.stolen_cores == pytest.approx(0.1)
    assert load.memory_stalled_share == pytest.approx(0.1)
    assert load.mhz == 2500.0
    assert load.programs == (("new", pytest.approx(0.7)), ("old", pytest.approx(0.2)))
    assert load.is_busy
    assert load.describe() == (
        "other programs took 0.90 cores (new 0.70, old 0.20) and other virtual machines 0.10"
    )


def test_a_quiet_machine_is_not_busy() -> None:
    after = Sample(20.0, 110.5, 1.0, {7: ("old", 50.1)}, 30.0, frozenset(), None, None)
    load = load_between(BEFORE, after)
    assert not load.is_busy
    assert load.memory_stalled_share is None
    assert load.describe() == "other programs took 0.05 cores"
    # Rounding may give a negative time, which counts as 0.
    after = Sample(20.0, 109.9, 1.0, {}, 30.0, frozenset(), None, None)
    assert load_between(BEFORE, after).other_cores == 0.0


def test_memory_pressure_is_read_if_the_system_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory"
    monkeypatch.setattr(machine_load, "MEMORY_PRESSURE", file)
    assert sample().memory_stalled is None
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0 total=9\n")
    assert sample().memory_stalled == 1.5


@pytest.mark.slow
def test_another_program_is_seen(busy_program: int) -> None:
    before = sample()
    time.sleep(0.5)
    load = load_between(before, sample())
    assert busy_program in before.programs
    assert load.programs
    assert load.other_cores > machine_load.BUSY_CORES


def test_a_process_passed_as_own_is_no_other_program(busy_program: int) -> None:
    before, with_it = sample(), sample([busy_program])
    time.sleep(0.3)
    assert busy_program not in with_it.programs
    assert sample([busy_program]).own - with_it.own > 0.01
    assert with_it.own >= before.own


def test_our_children_are_ours() -> None:
    with subprocess.Popen(HOG) as ours:
        try:
            assert ours.pid not in sample().programs
        finally:
            ours.kill()
