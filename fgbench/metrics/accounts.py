"""What a run says of the machine's other load, of the server's KV memory and of its requests' time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

from fgbench.metrics.record import STATES
from fgbench.metrics.summary import Summary

WORTH_SAYING = 0.02
"""Of the cores, and of the time."""
NAMES = ("uptime_seconds", "pressure_seconds", "copy_wait_seconds")


@dataclass(frozen=True, slots=True)
class MachineAccount:
    """From the first request's time to the end of the last answer, on the client's machine.

    Others are all programs but the client and the server under test.
    """

    seconds: float
    other_cores: float
    """That others took, the mean."""
    peak_cores: float
    """That they took in their busiest second."""
    busy_share: float
    """Of the seconds, in which they took more than a tenth of a core."""
    stolen_cores: float
    """That other virtual machines took, the mean."""
    memory_stalled_share: float | None
    """Of the time, in which a program waited for memory; None where the system does not say."""
    mhz: float | None
    """Of the processor, the mean; None where the system does not say."""
    programs: tuple[tuple[str, float], ...]
    """The busiest others, by name, with the cores they took."""
    busy: bool
    """Whether others took so much that the run's tables and pictures are marked."""

    def describe(self) -> str:
        named = ", ".join(f"{name} {cores:.2f}" for name, cores in self.programs)
        said = f"other programs took {self.other_cores:.2f} cores" + (f" ({named})" if named else "")
        said += f", {self.peak_cores:.2f} in their busiest second"
        if self.stolen_cores > WORTH_SAYING:
            said += f"; other virtual machines took {self.stolen_cores:.2f}"
        if (self.memory_stalled_share or 0.0) > WORTH_SAYING:
            said += f"; programs waited for memory {self.memory_stalled_share:.0%} of the time"
        return said

    def to_json(self) -> dict[str, Any]:
        """run.json's ``machine``."""
        return asdict(self)

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> MachineAccount | None:
        """From run.json's ``machine``; None where the run has none: it was killed, or is a simulation.

        Raises:
            ValueError: a figure is of another type.
        """
        said = info.get("machine")
        if not isinstance(said, dict) or any(f.name not in said for f in fields(cls)):
            return None
        return msgspec.convert(said, cls)


@dataclass(frozen=True, slots=True)
class MemoryAccount:
    """From the end of the warm-up to the end of the load, trimmed requests included. Of several simulated
    replicas the mean."""

    seconds: float
    """That the account covers, on the server's clock."""
    pressure_seconds: float
    """In which both KV pools were nearly full: nothing new started, the started requests finished in order of
    arrival."""
    copy_wait_seconds: float
    """In which the device had nothing to run, because every request waited for a copy of its KV."""
    replicas: int = 1

    @property
    def copy_wait_share(self) -> float:
        return self.copy_wait_seconds / self.seconds

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> MemoryAccount | None:
        """From run.json's ``server_stats``; None where the server does not say, or was started again."""
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
    """Means over the requests that came with an account."""

    seconds: dict[str, float]
    """In each of ``STATES`` that the server accounts for."""
    preemptions: float | None
    bytes_moved: float | None
    """Of KV, between device and host."""

    @property
    def swapped_share(self) -> float | None:
        """Share of the requests' time at the server in which their turn had come, but their KV had not."""
        whole = sum(self.seconds.values())
        return self.seconds["swapped"] / whole if "swapped" in self.seconds and whole > 0.0 else None

    @classmethod
    def of(cls, summary: Summary) -> Breakdown | None:
        """None where no request came with an account: the server is of another make."""
        if not summary.server_requests:
            return None
        means = {name: total / summary.server_requests for name, total in summary.server_totals.items()}
        return cls(
            seconds={state: means[state] for state in STATES if state in means},
            preemptions=means.get("preemptions"),
            bytes_moved=means.get("bytes_moved"),
        )
