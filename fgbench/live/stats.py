"""What a server says of itself at one moment, and what happened between two of them. Pure.

Servers differ in what they say, older ones of our own too: whatever is missing or no number is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
"""They only grow while a server lives."""


@dataclass(frozen=True, slots=True)
class LevelCount:
    name: str
    requests: int
    quantum: float | None
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Blocks of KV memory. A server may tell no more than the share in use."""

    used_share: float
    used: int | None = None
    blocks: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    at: float
    """Seconds on the asker's clock."""
    running: int | None = None
    """Requests in the last batch."""
    max_batch_size: int | None = None
    waiting: int | None = None
    swapped: int | None = None
    device: Pool | None = None
    host: Pool | None = None
    under_pressure: bool | None = None
    """Whether both pools are nearly full, so that nothing new starts."""
    levels: tuple[LevelCount, ...] = ()
    counters: Mapping[str, float] = field(default_factory=dict)
    """Those of ``COUNTERS`` that were told."""
    block_bytes: float | None = None
    uptime: float | None = None
    """Seconds on the server's clock."""
    policy: str = ""
    model: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any], at: float) -> Snapshot:
        """Reads the JSON of /stats; never raises for what is strange in it."""
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
        )

    @property
    def requests(self) -> int | None:
        """Unfinished ones, wherever they are."""
        known = [n for n in (self.running, self.waiting, self.swapped) if n is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, between two snapshots; None: not told."""

    seconds: float
    """Between them."""
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    finished: float | None = None
    """Requests."""
    preemptions: float | None = None
    offloaded_blocks: float | None = None
    uploaded_blocks: float | None = None
    recomputed_tokens: float | None = None
    offloaded_bytes: float | None = None
    uploaded_bytes: float | None = None
    step_seconds: float | None = None
    """Mean length of a step; None too where there was none."""
    copy_wait_share: float | None = None
    """Of the time, in which the device had nothing to run because every request waited for a copy."""
    pressure_share: float | None = None
    """Of the time, in which KV memory was under pressure."""


def started_again(before: Snapshot, after: Snapshot) -> bool:
    """Whether what only grows has become less: it is no longer the same server."""
    return _seconds(before, after) < 0 or any(change < 0 for change in _growth(before, after).values())


def rates_between(before: Snapshot, after: Snapshot) -> Rates | None:
    """None where hardly any time has passed, or where the server was started again."""
    seconds, grown = _seconds(before, after), _growth(before, after)
    if seconds < SHORTEST_SECONDS or started_again(before, after):
        return None

    def rate(name: str, unit: float | None = 1.0) -> float | None:
        return None if unit is None or name not in grown else grown[name] * unit / seconds

    def share(name: str) -> float | None:
        """A counter of seconds that ends with a step may grow by more than the seconds between two looks."""
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
    """By the server's own clock where it tells it: there is no way of a message in it."""
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
    """None for what is no finite number >= 0."""
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
