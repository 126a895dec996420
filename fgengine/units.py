"""Numbers as people read them. Pure."""

from __future__ import annotations

import math


def seconds(value: float | None) -> str:
    """Three significant digits with the unit that suits the size."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) >= 100.0:
        return f"{value:.0f} s"
    if abs(value) >= 1.0:
        return f"{value:.3g} s"
    if abs(value) >= 0.1:
        return f"{value * 1e3:.0f} ms"
    if abs(value) >= 1e-3:
        return f"{value * 1e3:.3g} ms"
    return "0 s" if value == 0.0 else f"{value * 1e6:.3g} µs"


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, never in scientific notation for what is large."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "all at once"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024.0:
            return f"{number(num_bytes)} {unit}"
        num_bytes /= 1024.0
    return f"{number(num_bytes)} TiB"


def clock(seconds: float) -> str:
    """``2:05``, or ``1:02:05`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def span(low: float, high: float) -> str:
    """Two figures of seconds in the unit that suits the larger: ``61.2–68.1 ms``."""
    text, unit = seconds(high).split(" ")
    factor = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit]
    return f"{number(low * factor)}–{text} {unit}"


def times(ratio: float) -> str:
    """``0.46x``; of ten and more two digits."""
    return f"{number(ratio, 2) if ratio >= 10.0 else f'{ratio:.2f}'}x"


def percent(share: float | None) -> str:
    """A share from 0 to 1: ``0%``, ``<0.1%``, ``4.2%``, ``37%``; ``-`` where there is none."""
    if share is None or math.isnan(share):
        return "-"
    if 0.0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if 0.0 < share < 0.0995 else f"{share:.0%}"
