"""Leaves out the start and the end of a run, when the server fills up and runs empty. Pure."""

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
        """Return the text that ``parse`` reads."""
        return f"{self.value * 100:g}%" if self.is_share else f"{self.value:g}s"

    @classmethod
    def parse(cls, text: str, option: str) -> Amount:
        """Parse ``10%``, ``30s`` or ``30``.

        Raises:
            ValueError: ``text`` is not an amount; the message names ``option``.
        """
        match = _AMOUNT.fullmatch(text.strip())
        value = float(match["number"]) if match else math.nan
        if match is None or not math.isfinite(value):
            raise ValueError(f"{option} takes seconds or a share, like 30s or 10%, not {text!r}")
        if match["unit"] != "%":
            return cls(value)
        if value >= 100:
            raise ValueError(f"{option} {text} would leave nothing: give a share below 100%")
        return cls(value / 100, is_share=True)

    def of(self, seconds: float) -> float:
        """Return the amount in seconds, for a load of this many seconds."""
        return self.value * seconds if self.is_share else self.value


NOTHING = Amount(0.0)


@dataclass(frozen=True, slots=True)
class Trim:
    """The parts of a load whose requests do not count: its start and its end."""

    start: Amount = NOTHING
    end: Amount = NOTHING

    @classmethod
    def parse(cls, start: str | None, end: str | None) -> Trim:
        """Parse the options ``--trim`` (start) and ``--cool-down`` (end).

        Raises:
            ValueError: an option is not an amount, or both shares together leave nothing.
        """
        trim = cls(
            Amount.parse(start, "--trim") if start else NOTHING,
            Amount.parse(end, "--cool-down") if end else NOTHING,
        )
        shares = sum(amount.value for amount in (trim.start, trim.end) if amount.is_share)
        if shares >= 1.0:
            raise ValueError(
                f"--trim and --cool-down together are {shares:.0%} and leave nothing: give smaller shares"
            )
        return trim

    def to_json(self) -> dict[str, str]:
        """Return the value of ``trim`` in run.json."""
        return {"start": str(self.start), "end": str(self.end)}

    def window(self, records: Sequence[RequestRecord]) -> tuple[float, float] | None:
        """Return start and end in seconds: requests scheduled between them count. None if all count."""
        if not records or (self.start.value == 0.0 and self.end.value == 0.0):
            return None
        first = min(record.scheduled for record in records)
        last = max(record.scheduled for record in records)
        return first + self.start.of(last - first), last - self.end.of(last - first)


WHOLE = Trim()
