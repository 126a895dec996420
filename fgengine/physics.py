"""The physical lower bound of a step's time, from the bytes it must read and the arithmetic it must do. Pure.

A profile with a faster step must be wrong. The published artifact shipped such a profile (no prefill above
2.5 ms), which silently disabled its skip-join.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgengine.model.shape import ModelShape

TOLERANCE = 0.7
"""Steps may take as little as this share of their floor, because ceilings measured under load are too low."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The maximum speeds of the device, measured together with the steps."""

    bytes_per_second: float
    """Bytes per second when reading a buffer as large as the weights."""
    flops_per_second: float
    """FLOP per second of a matrix product in the model's dtype; a multiply-add counts as two."""

    def __post_init__(self) -> None:
        if not (self.bytes_per_second > 0.0 and self.flops_per_second > 0.0):
            raise ValueError("ceilings must be above 0 bytes/s and 0 FLOP/s")

    def or_better(self, other: Ceilings) -> Ceilings:
        """Return the higher value of each, because other load can only lower a measurement."""
        return Ceilings(
            max(self.bytes_per_second, other.bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
        )


@dataclass(frozen=True, slots=True)
class Floor:
    """The minimum seconds of a step: for reading and for computing, which can overlap."""

    reading: float
    """Seconds to read the weights and the KV."""
    computing: float
    """Seconds for the arithmetic."""

    @property
    def seconds(self) -> float:
        """Minimum seconds of the step."""
        return max(self.reading, self.computing)


def floor_of(
    items: Sequence[tuple[int, int]], shape: ModelShape, element_bytes: int, ceilings: Ceilings
) -> Floor:
    """Return the floor of a step over ``items``, (start, num_tokens) each. Every item yields a token."""
    tokens = sum(n for _, n in items)
    attended = sum(start + n for start, n in items)
    pairs = sum(n * start + n * (n + 1) // 2 for start, n in items)
    weights = layer_parameters(shape) + output_parameters(shape)
    num_bytes = weights * element_bytes + attended * shape.kv_bytes_per_token(element_bytes)
    flops = 2.0 * layer_parameters(shape) * tokens
    flops += 2.0 * output_parameters(shape) * len(items)
    flops += 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * pairs
    return Floor(num_bytes / ceilings.bytes_per_second, flops / ceilings.flops_per_second)


def layer_parameters(shape: ModelShape) -> int:
    """Return the parameters that every token uses: all except the embedding tables and the output layer."""
    tables = output_parameters(shape) * (1 if shape.tied_embeddings else 2)
    if shape.family == "opt":
        tables += (shape.max_position + 2) * shape.hidden_size
    return shape.num_parameters - tables


def output_parameters(shape: ModelShape) -> int:
    """Return the parameters of the output layer, which a step reads once and uses for each request."""
    return shape.vocab_size * (shape.embed_dim or shape.hidden_size)


def impossible(
    steps: Iterable[tuple[Sequence[tuple[int, int]], float]],
    shape: ModelShape,
    element_bytes: int,
    ceilings: Ceilings,
    tolerance: float = TOLERANCE,
) -> list[str]:
    """Return a sentence for each (items, seconds) that is below ``tolerance`` times its floor."""
    found = []
    for items, seconds in steps:
        floor = floor_of(items, shape, element_bytes, ceilings)
        if seconds < tolerance * floor.seconds:
            tokens = sum(n for _, n in items)
            work = "reading weights and KV" if floor.reading >= floor.computing else "the arithmetic"
            found.append(
                f"a step of {tokens} tokens in {len(items)} requests cannot take {seconds * 1e3:.3g} ms, "
                f"because {work} alone takes {floor.seconds * 1e3:.3g} ms on this device"
            )
    return found
