"""Leaving out the beginning and the end of a run, where a server fills up and runs empty. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fgbench.metrics.record import RequestRecord

_AMOUNT = re.compile(r"(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>%|s|)")


@dataclass(frozen=True, slots=True)
class Amount:
    """Seconds, or a share of the time in which requests were scheduled."""

    value: float
    is_share: bool = False

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        return f"{self.value * 100:g}%" if self.is_share else f"{self.value:g}s"

    @classmethod
    def parse(cls, text: str, option: str) -> Amount:
        """``10%``, ``30s`` or ``30``. Raises ValueError, naming ``option``, for anything else."""
        match = _AMOUNT.fullmatch(text.strip())
        value = float(match["number"]) if match else math.nan
        if match is None or not math.isfinite(value):
            raise ValueError(f"{option} takes seconds or a share, like 30s or 10%, not {text!r}")
        if match["unit"] != "%":
            return cls(value)
        if value >= 100:
            raise ValueError(f"{option} {text} would leave nothing")
        return cls(value / 100, is_share=True)

    def of(self, seconds: float) -> float:
        return self.value * seconds if self.is_share else self.value


NOTHING = Amount(0.0)


@dataclass(frozen=True, slots=True)
class Trim:
    """What is left out of the figures: requests scheduled at the start, and those scheduled at the end."""

    start: Amount = NOTHING
    end: Amount = NOTHING

    @classmethod
    def parse(cls, start: str | None, end: str | None) -> Trim:
        """Raises ValueError for what is no amount, and for shares that leave nothing."""
        trim = cls(
            Amount.parse(start, "--trim") if start else NOTHING,
            Amount.parse(end, "--cool-down") if end else NOTHING,
        )
        shares = sum(amount.value for amount in (trim.start, trim.end) if amount.is_share)
        if shares >= 1.0:
            raise ValueError(f"--trim and --cool-down leave nothing: together they are {shares:.0%}")
        return trim

    def to_json(self) -> dict[str, str]:
        return {"start": str(self.start), "end": str(self.end)}

    def window(self, records: Sequence[RequestRecord]) -> tuple[float, float] | None:
        """From when to when a request must have been scheduled to count, seconds; None: all count."""
        if not records or (self.start.value == 0.0 and self.end.value == 0.0):
            return None
        first = min(record.scheduled for record in records)
        last = max(record.scheduled for record in records)
        return first + self.start.of(last - first), last - self.end.of(last - first)


WHOLE = Trim()
