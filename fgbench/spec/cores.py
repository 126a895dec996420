"""Lists of processor cores, written as taskset writes them: ``0-3,6`` or ``0-7:2``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_CORE = 4095
"""Highest core number that is read; Linux supports at most 4,096 or 8,192 cores, depending on its build."""
_PART = re.compile(r"(?P<first>\d{1,4})(?:-(?P<last>\d{1,4})(?::(?P<step>\d{1,4}))?)?")


def parse_cores(text: str) -> tuple[int, ...]:
    """Return the core numbers in a list such as ``0-3,6``, in increasing order and each once.

    ``0-7:2`` is every second core from 0 to 7. Raises ValueError if ``text`` is not such a list.
    """
    found: set[int] = set()
    for word in text.split(","):
        part = _PART.fullmatch(word.strip())
        first = int(part["first"]) if part else 0
        last = int(part["last"]) if part and part["last"] else first
        step = int(part["step"]) if part and part["step"] else 1
        if part is None or not first <= last <= MAX_CORE or step == 0:
            raise ValueError(f"--cores {text!r} is not a list of cores: write it like 0-3 or 0,2,4")
        found.update(range(first, last + 1, step))
    return tuple(sorted(found))


def cores_text(cores: Iterable[int]) -> str:
    """Return core numbers as a list such as ``0-3,6``, which ``parse_cores`` reads."""
    runs: list[list[int]] = []
    for core in sorted(set(cores)):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
