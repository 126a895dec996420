"""Snapshots of a server's statistics, and the rates between two snapshots. Has no side effects.

Servers report different statistics, and so do older versions of fastgen. A value that is missing or not a
number is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fgbench.metrics.accounts import ANALYTIC_DEVICE

MAX_LEVELS = 64
SHORTEST_SECONDS = 1e-3
COUNTERS = (
    "prompt_tokens",
    "generated_tokens",
    "finished",
    "aborted",
    "requests_rejected",
    "requests_timed_out",
    "preemptions",
    "offloaded_blocks",
    "uploaded_blocks",
    "recomputed_tokens",
    "work_steps",
    "model_seconds",
    "engine_seconds",
    "copy_wait_seconds",
    "pressure_seconds",
)
"""Values that only increase while a server runs."""


@dataclass(frozen=True, slots=True)
class LevelCount:
    """A queue of MLFQ and its number of requests."""

    name: str
    requests: int
    quantum: float | None
    """Quantum in seconds."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of KV blocks. Some servers report only the used share."""

    used_share: float
    """Used share, 0 to 1."""
    used: int | None = None
    """Used blocks."""
    blocks: int | None = None
    """All blocks."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server's statistics at one moment."""

    at: float
    """Seconds on the client's clock."""
    running: int | None = None
    """Requests in the last batch."""
    max_batch_size: int | None = None
    waiting: int | None = None
    swapped: int | None = None
    """Requests whose KV is offloaded."""
    device: Pool | None = None
    host: Pool | None = None
    under_pressure: bool | None = None
    """Whether both pools are nearly full, so that no new request starts."""
    levels: tuple[LevelCount, ...] = ()
    counters: Mapping[str, float] = field(default_factory=dict)
    """The values of ``COUNTERS`` that the server reported."""
    block_bytes: float | None = None
    uptime: float | None = None
    """Seconds on the server's clock."""
    policy: str = ""
    model: str = ""
    analytic_device: str = ""
    """Name of a device whose step times are computed from published figures; empty: they are real."""

    @classmethod
    def of(cls, values: Mapping[str, Any], at: float) -> Snapshot:
        """Read the JSON of /stats. Never raises: a value that is not valid becomes None."""
        return cls(
            at,
            running=_count(values.get("running")),
            max_batch_size=_count(values.get("max_batch_size")),
            waiting=_count(values.get("waiting")),
            swapped=_count(values.get("swapped")),
            device=_pool(values, "device"),
            host=_pool(values, "host"),
            under_pressure=flag if isinstance(flag := values.get("under_pressure"), bool) else None,
            levels=_levels(values.get("levels")),
            counters={name: n for name in COUNTERS if (n := _number(values.get(name))) is not None},
            block_bytes=_number(values.get("block_bytes")) or None,
            uptime=_number(values.get("uptime_seconds")),
            policy=_text(values.get("policy")),
            model=_text(values.get("model")),
            analytic_device=_text(values.get(ANALYTIC_DEVICE)),
        )

    @property
    def requests(self) -> int | None:
        """Number of unfinished requests; None: not known."""
        known = [n for n in (self.running, self.waiting, self.swapped) if n is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Rates:
    """Changes per second between two snapshots; None: the server does not report the value."""

    seconds: float
    """Seconds between the snapshots."""
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    finished: float | None = None
    """Finished requests per second."""
    preemptions: float | None = None
    offloaded_blocks: float | None = None
    uploaded_blocks: float | None = None
    recomputed_tokens: float | None = None
    offloaded_bytes: float | None = None
    uploaded_bytes: float | None = None
    step_seconds: float | None = None
    """Mean duration of a step in seconds; None also if there was no step."""
    copy_wait_share: float | None = None
    """Share of the time (0 to 1) in which the device was idle because every request waited for a copy."""
    pressure_share: float | None = None
    """Share of the time (0 to 1) in which KV memory was under pressure."""


def started_again(before: Snapshot, after: Snapshot) -> bool:
    """Whether the server was restarted: a counter that only increases has decreased."""
    return _seconds(before, after) < 0 or any(change < 0 for change in _growth(before, after).values())


def rates_between(before: Snapshot, after: Snapshot) -> Rates | None:
    """Return the rates between two snapshots.

    Returns None if the time between them is too short, or if the server was restarted.
    """
    seconds, grown = _seconds(before, after), _growth(before, after)
    if seconds < SHORTEST_SECONDS or started_again(before, after):
        return None

    def rate(name: str, unit: float | None = 1.0) -> float | None:
        return None if unit is None or name not in grown else grown[name] * unit / seconds

    def share(name: str) -> float | None:
        # A counter of seconds is updated at the end of a step, so it can increase by more than the time
        # between two snapshots.
        per_second = rate(name)
        return None if per_second is None else min(1.0, per_second)

    steps = grown.get("work_steps", 0.0)
    spent = [grown[name] for name in ("model_seconds", "engine_seconds") if name in grown]
    return Rates(
        seconds,
        prompt_tokens=rate("prompt_tokens"),
        generated_tokens=rate("generated_tokens"),
        finished=rate("finished"),
        preemptions=rate("preemptions"),
        offloaded_blocks=rate("offloaded_blocks"),
        uploaded_blocks=rate("uploaded_blocks"),
        recomputed_tokens=rate("recomputed_tokens"),
        offloaded_bytes=rate("offloaded_blocks", after.block_bytes),
        uploaded_bytes=rate("uploaded_blocks", after.block_bytes),
        step_seconds=sum(spent) / steps if steps > 0 and spent else None,
        copy_wait_share=share("copy_wait_seconds"),
        pressure_share=share("pressure_seconds"),
    )


def _seconds(before: Snapshot, after: Snapshot) -> float:
    """Return the seconds between two snapshots.

    Uses the server's own clock if it reports it, because the client's clock includes the time of messages.
    """
    if before.uptime is not None and after.uptime is not None:
        return after.uptime - before.uptime
    return after.at - before.at


def _growth(before: Snapshot, after: Snapshot) -> dict[str, float]:
    shared = before.counters.keys() & after.counters.keys()
    return {name: after.counters[name] - before.counters[name] for name in shared}


def _pool(values: Mapping[str, Any], tier: str) -> Pool | None:
    blocks, free = _count(values.get(f"num_{tier}_blocks")), _count(values.get(f"free_{tier}_blocks"))
    if blocks is not None and free is not None:
        used = max(0, blocks - free)
        return Pool(used / blocks if blocks else 0.0, used, blocks)
    share = _number(values.get(f"{tier}_used_share"))
    return None if share is None else Pool(min(1.0, share))


def _levels(value: Any) -> tuple[LevelCount, ...]:
    if not isinstance(value, list):
        return ()
    entries = [entry for entry in value[:MAX_LEVELS] if isinstance(entry, dict)]
    return tuple(
        LevelCount(
            _text(entry.get("name")), _count(entry.get("requests")) or 0, _number(entry.get("quantum"))
        )
        for entry in entries
    )


def _number(value: Any) -> float | None:
    """Return a finite number >= 0; None if ``value`` is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
