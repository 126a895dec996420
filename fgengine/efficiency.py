"""The shares of a device's published peaks that an analytic profile assumes, each with its reason. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of peak rates, and the time of a step in which no rate is the limit.

    Raises ValueError if a share is not above 0 and at most 1, or if a time is negative.
    """

    bandwidth: float = 0.85
    """Share of the peak memory bandwidth."""
    flops: float = 0.7
    """Share of the peak FLOP per second."""
    link: float = 0.8
    """Share of the peak bandwidth of the link to the host."""
    step_seconds: float = 0.0003
    """Seconds of each step in addition: sampling, and reading the tokens."""
    layer_seconds: float = 30e-6
    """Seconds of each layer of a step in addition: gaps between kernels, and kernels that only move rows."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"efficiency: {field.name} must be a number, not {value!r}")
            if field.name.endswith("_seconds"):
                if not 0.0 <= value <= 1.0:
                    raise ValueError(f"efficiency: {field.name} must be 0 to 1 seconds, not {value}")
            elif not 0.0 < value <= 1.0:
                raise ValueError(f"efficiency: {field.name} must be above 0 and at most 1, not {value}")

    def with_step_overhead(self, seconds: float) -> Efficiency:
        """Return the same shares with another time of each step; no layer adds to it."""
        return replace(self, step_seconds=seconds, layer_seconds=0.0)

    @property
    def has_default_overhead(self) -> bool:
        """Whether the times of a step and of its layers are the defaults."""
        default = Efficiency()
        return (self.step_seconds, self.layer_seconds) == (default.step_seconds, default.layer_seconds)

    def reasons(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each assumption with a sentence: its value and its reason."""
        values = {
            "bandwidth": f"{self.bandwidth:.0%} of the memory bandwidth",
            "flops": f"{self.flops:.0%} of the FLOP/s",
            "link": f"{self.link:.0%} of the link",
            "step_seconds": f"{self.step_seconds * 1e3:g} ms for each step",
            "layer_seconds": f"{self.layer_seconds * 1e6:g} µs for each layer of a step",
        }
        if not self.layer_seconds:
            del values["layer_seconds"]
        default = Efficiency()
        for name, value in values.items():
            is_default = getattr(self, name) == getattr(default, name)
            yield name, f"{value}: {REASONS[name] if is_default else 'set by hand'}"


REASONS = {
    "bandwidth": "copies of long arrays reach about 0.9 of it, products of matrix and vector somewhat less",
    "flops": "the best matrix product reaches 0.86 on an A100 and 0.80 on an H100 (S. Bekman, Machine "
    "Learning Engineering, maximum achievable matmul FLOPS); a model's shapes and other kernels reach less",
    "link": "packets of PCIe have headers: copies from pinned memory reach 25 to 26 of 32 GB/s",
    "step_seconds": "an estimate of sampling and of reading the tokens",
    "layer_seconds": "an estimate; with it and the share of the bandwidth, Llama-2-7B in bfloat16 decodes "
    "112 tokens/s at batch size 1 on an A100 80 GB, where gpt-fast (pytorch-labs) published 104.9",
}
"""Why the default of each assumption was chosen."""
