"""A GPU's maximum speed is timed by the GPU, over groups of repeats, and the best group counts."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from fgengine import ceilings


class FakeGPU:
    """A fake GPU. Only work advances the clock of its events."""

    def __init__(self) -> None:
        self.now = 0.0
        self.work_seconds = [1e-3]
        self.launches = 0

    def work(self) -> None:
        self.now += self.work_seconds[min(self.launches, len(self.work_seconds) - 1)]
        self.launches += 1

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        gpu = self

        class Event:
            def record(self) -> None:
                self.at = gpu.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: Event) -> float:
                return (other.at - self.at) * 1e3

        return Event()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    fake = FakeGPU()
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(ceilings, "SECONDS", 0.0)  # three groups
    return fake


def test_the_gpus_clock_times_groups_of_a_fixed_length(gpu: FakeGPU) -> None:
    seconds = ceilings._best_seconds(gpu.work, torch.device("cuda"))
    assert seconds == pytest.approx(1e-3)
    assert gpu.launches == 1 + 3 + 3 * round(ceilings.GROUP_SECONDS / 1e-3)


def test_the_best_group_counts(gpu: FakeGPU) -> None:
    gpu.work_seconds = [1e-3] * 4 + [3e-3] * 20 + [0.5e-3] * 20 + [2e-3]
    assert ceilings._best_seconds(gpu.work, torch.device("cuda")) == pytest.approx(0.5e-3)


def test_work_of_no_length_is_not_repeated_forever(gpu: FakeGPU) -> None:
    gpu.work_seconds = [0.0]
    ceilings._best_seconds(gpu.work, torch.device("cuda"))
    assert gpu.launches == 4 + 3 * ceilings.MAX_GROUPED


@pytest.mark.slow
def test_a_cpu_is_measured_by_the_hosts_clock() -> None:
    found = ceilings.measure_ceilings(torch.device("cpu"), torch.float32, 4 * 1024**2)
    assert found.bytes_per_second > 1e8
    assert found.flops_per_second > 1e8
