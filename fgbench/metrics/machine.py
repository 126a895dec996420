"""What else the machine did during a run: whether its figures are the system's alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

WORTH_SAYING = 0.02
"""Of the cores, and of the time."""


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
