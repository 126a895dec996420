"""Reads quantities with units, as data sheets print them: ``1555GB/s``, ``312 TFLOP/s``, ``40GiB``. Pure."""

from __future__ import annotations

import math
import re

PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
MAX_VALUE = 1e21
_QUANTITY = re.compile(r"([0-9]+(?:[.,][0-9]+)*(?:e[+-]?[0-9]+)?) ?([A-Za-z/]*)")


def bytes_of(text: str) -> int:
    """Read a size, such as ``40GiB`` or ``141GB``; GiB counts in powers of 1024, GB in powers of 1000.

    Raises ValueError if it is not a positive size.
    """
    return round(_read(text, ("B",), "a size, such as 40GiB"))


def bytes_per_second(text: str) -> float:
    """Read a bandwidth, such as ``1555GB/s``. Raises ValueError if it is not a positive bandwidth."""
    return _read(text, ("B/s", "B/S", "Bps"), "a bandwidth, such as 1555GB/s")


def flops_per_second(text: str) -> float:
    """Read operations per second, such as ``312TFLOP/s``. Raises ValueError if it is not a positive rate."""
    return _read(text, ("FLOP/s", "FLOPS", "FLOPs", "flops"), "operations per second, such as 312TFLOP/s")


def _read(text: str, units: tuple[str, ...], wanted: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is not None:
        number, name = match.groups()
        for unit in units:
            factor = _factor(name, unit)
            if factor is not None:
                value = float(number.replace(",", "")) * factor
                if 1.0 <= value <= MAX_VALUE and math.isfinite(value):
                    return value
    raise ValueError(f"{text!r} is not {wanted}: give a number above 0 with its unit")


def _factor(name: str, unit: str) -> float | None:
    """Return the factor of a prefix and a unit, such as 1e9 for ``GB``; None if the unit is another one."""
    if not name.endswith(unit):
        return None
    prefix = name.removesuffix(unit)
    return PREFIXES.get(prefix, BINARY.get(prefix))
