"""What a run's KV memory did to its server, by the server's own account. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMES = ("uptime_seconds", "pressure_seconds", "copy_wait_seconds")


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
