"""Load of other programs, KV memory of the server, and where requests spent their time, in one run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

from fgbench.metrics.record import STATES
from fgbench.metrics.summary import Summary

WORTH_SAYING = 0.02
"""Smallest number of cores, and share of the time, that a description mentions."""
NAMES = ("uptime_seconds", "pressure_seconds", "copy_wait_seconds")
ANALYTIC_DEVICE = "analytic_device"
"""Key of the device's name, in the settings of a simulation and in ``server_stats``, if the step times were
computed from published figures and not measured."""


def analytic_device(info: Mapping[str, Any]) -> str | None:
    """Return the name of the device whose step times a run computed from published figures.

    Returns None if the run, from whose run.json ``info`` is, measured its step times.
    """
    settings = (info.get("backend") or {}).get("settings") or {}
    after = (info.get("server_stats") or {}).get("after") or {}
    name = settings.get(ANALYTIC_DEVICE) or after.get(ANALYTIC_DEVICE) or settings.get("device_spec")
    return str(name) if name else None


@dataclass(frozen=True, slots=True)
class MachineAccount:
    """CPU and memory load of the client's machine during the load.

    It covers the time from the first request to the end of the last answer. "Other programs" are all programs
    except the client and the server under test.
    """

    seconds: float
    other_cores: float
    """Mean number of cores that other programs used."""
    peak_cores: float
    """Cores that other programs used in their busiest second."""
    busy_share: float
    """Share of the seconds in which other programs used more than a tenth of a core."""
    stolen_cores: float
    """Mean number of cores that other virtual machines took."""
    memory_stalled_share: float | None
    """Share of the time in which a program waited for memory; None if the system does not report it."""
    mhz: float | None
    """Mean clock of the processor; None if the system does not report it."""
    programs: tuple[tuple[str, float], ...]
    """Names of the busiest other programs, with the cores they used."""
    busy: bool
    """Whether other programs used so much that tables and pictures mark the run."""

    def describe(self) -> str:
        """Return one line for tables: what other programs used."""
        named = ", ".join(f"{name} {cores:.2f}" for name, cores in self.programs)
        text = f"other programs took {self.other_cores:.2f} cores" + (f" ({named})" if named else "")
        text += f", {self.peak_cores:.2f} in their busiest second"
        if self.stolen_cores > WORTH_SAYING:
            text += f"; other virtual machines took {self.stolen_cores:.2f}"
        if (self.memory_stalled_share or 0.0) > WORTH_SAYING:
            text += f"; programs waited for memory {self.memory_stalled_share:.0%} of the time"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the value of ``machine`` in run.json."""
        return asdict(self)

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> MachineAccount | None:
        """Read ``machine`` of run.json; return None if there is none (a killed run or a simulation).

        Raises:
            ValueError: a figure has the wrong type.
        """
        machine = info.get("machine")
        if not isinstance(machine, dict) or any(f.name not in machine for f in fields(cls)):
            return None
        return msgspec.convert(machine, cls)


@dataclass(frozen=True, slots=True)
class MemoryAccount:
    """How long KV memory was nearly full, and how long the device waited for copies.

    It covers the time from the end of the warm-up to the end of the load, trimmed requests included. For
    several simulated replicas, it is the mean.
    """

    seconds: float
    """Seconds covered, on the server's clock."""
    pressure_seconds: float
    """Seconds in which both KV pools were nearly full. Then no new request starts, and the started ones
    finish in order of arrival."""
    copy_wait_seconds: float
    """Seconds in which the device had nothing to run, because every request waited for a copy of its KV."""
    replicas: int = 1

    @property
    def copy_wait_share(self) -> float:
        """Share of the time in which the device waited for copies."""
        return self.copy_wait_seconds / self.seconds

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> MemoryAccount | None:
        """Read ``server_stats`` of run.json.

        Returns None if the server does not report KV memory, or was restarted during the load.
        """
        stats = info.get("server_stats") or {}
        before, after = stats.get("before") or {}, stats.get("after") or {}
        if not all(name in before and name in after for name in NAMES):
            return None
        seconds, pressure, copies = (float(after[name]) - float(before[name]) for name in NAMES)
        if seconds <= 0.0 or pressure < 0.0 or copies < 0.0:
            return None
        replicas = int(stats.get("replicas", 1))
        return cls(seconds, pressure / replicas, copies / replicas, replicas)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where a request spent its time in the server: means over the requests that the server reports on."""

    seconds: dict[str, float]
    """Mean seconds in each of ``STATES`` that the server reports."""
    preemptions: float | None
    """Mean number of preemptions of a request."""
    bytes_moved: float | None
    """Mean bytes of KV copied between device and host for a request."""

    @property
    def swapped_share(self) -> float | None:
        """Share of the requests' time in the server in which they were stalled.

        A stalled request is selected to run, but its KV is on the host or in transfer.
        """
        total = sum(self.seconds.values())
        return self.seconds["swapped"] / total if "swapped" in self.seconds and total > 0.0 else None

    @classmethod
    def of(cls, summary: Summary) -> Breakdown | None:
        """Return the means, or None if the server reports nothing about its requests (not FastGen)."""
        if not summary.server_requests:
            return None
        means = {name: total / summary.server_requests for name, total in summary.server_totals.items()}
        return cls(
            seconds={state: means[state] for state in STATES if state in means},
            preemptions=means.get("preemptions"),
            bytes_moved=means.get("bytes_moved"),
        )
