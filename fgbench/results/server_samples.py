"""Reads ``server_metrics.jsonl`` of a run folder: the server's own figures, sampled during the load."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

FILE = "server_metrics.jsonl"
Samples = list[dict[str, float]]
"""One dictionary per moment: ``at`` (seconds since the load began) and what the server reported then."""


def read_samples(folder: Path) -> Samples:
    """Return the samples of a run; empty if its server reported nothing.

    A line that is not complete, because the program died, is left out.

        read_samples(Path("results/RUN"))[-1]["device_used_share"]
    """
    path, found = folder / FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            numbers = {str(key): value for key, value in row.items() if isinstance(value, int | float)}
            found.append({key: float(value) for key, value in numbers.items() if math.isfinite(value)})
    return found


def series(samples: Sequence[dict[str, float]], name: str) -> list[float | None]:
    """Return one figure at each sample; None where the server did not report it."""
    return [sample.get(name) for sample in samples]


def per_second(samples: Sequence[dict[str, float]], name: str) -> list[float | None]:
    """Return how much a counter grew per second before each sample; None for the first, and after a gap."""
    found: list[float | None] = [None] if samples else []
    for before, after in pairwise(samples):
        seconds = after["at"] - before["at"] if "at" in before and "at" in after else 0.0
        known = name in before and name in after and seconds > 0.0
        found.append(max(0.0, after[name] - before[name]) / seconds if known else None)
    return found


def hit_shares(samples: Sequence[dict[str, float]]) -> list[float | None]:
    """Return the share of prompt tokens found in the prefix cache, of those looked up before each sample."""
    hits, looked_up = per_second(samples, "hits"), per_second(samples, "looked_up")
    return [h / all_ if h is not None and all_ else None for h, all_ in zip(hits, looked_up, strict=True)]
