"""What the points of a comparison differ in: how often requests came, or how many were in flight. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fgbench.units import number


@dataclass(frozen=True, slots=True)
class Axis:
    """A load is measured along it; a level is a place on it."""

    name: str
    """In tables, JSON and CSV."""
    title: str
    """In pictures."""
    unit: str
    """Behind a level of it."""
    say: Callable[[float], str]
    """A level in words."""


def _rate(level: float) -> str:
    if math.isinf(level):
        return "all at once"
    return f"{number(level)} request{'' if level == 1.0 else 's'} / s"


RATE = Axis("rate", "offered rate (requests / s)", "/s", _rate)
CONCURRENCY = Axis(
    "concurrency",
    "concurrency (requests in flight)",
    " in flight",
    lambda level: f"{number(level, 6)} in flight",
)


def axis_of(workload: dict[str, Any]) -> Axis:
    """Of run.json's ``workload``."""
    return RATE if _workers(workload) is None else CONCURRENCY


def level_of(workload: dict[str, Any]) -> float:
    """Where on its axis it is: requests per second, infinite for all at once; or requests in flight."""
    workers = _workers(workload)
    return float(workload.get("rate") or "nan") if workers is None else float(workers)


def _workers(workload: dict[str, Any]) -> Any:
    """Of a closed loop, which asks for no rate; None of others."""
    return (workload.get("arrival_process") or {}).get("concurrency")
