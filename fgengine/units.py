"""Formats numbers for people. Pure."""

from __future__ import annotations

import math


def seconds(value: float | None) -> str:
    """Format seconds with three significant digits and a unit: ``61.2 ms``; ``-`` for None and NaN."""
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
    """Format a number with three significant digits; large numbers have all digits: ``12,345``.

    None and NaN are ``-``. Infinity is an offered rate: ``all at once``.
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "all at once"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def size(num_bytes: float) -> str:
    """Format bytes with a binary unit: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024.0:
            return f"{number(num_bytes)} {unit}"
        num_bytes /= 1024.0
    return f"{number(num_bytes)} TiB"


def clock(seconds: float) -> str:
    """Format seconds as ``2:05``, or from an hour on as ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def span(low: float, high: float) -> str:
    """Format a range of seconds in the unit of the larger value: ``61.2–68.1 ms``."""
    text, unit = seconds(high).split(" ")
    factor = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit]
    return f"{number(low * factor)}–{text} {unit}"


def times(ratio: float) -> str:
    """Format a ratio: ``0.46x``; from 10 on with two significant digits: ``12x``."""
    return f"{number(ratio, 2) if ratio >= 10.0 else f'{ratio:.2f}'}x"


def percent(share: float | None) -> str:
    """Format a share from 0 to 1 as ``0%``, ``<0.1%``, ``4.2%`` or ``37%``; ``-`` for None and NaN."""
    if share is None or math.isnan(share):
        return "-"
    if 0.0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if 0.0 < share < 0.0995 else f"{share:.0%}"
