"""Checks that can go wrong in any way: each is a row, and a GPU that one of them spoils is told of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from gpu.budget import Allowance
from gpu.report import Columns, Findings

MOST_WORDS = 500

TITLE = "(a) correctness"
COLUMNS: Columns = {
    "check": lambda row: row["check"],
    "of": lambda row: row["of"],
    "dtype": lambda row: row["dtype"],
    "": lambda row: "right" if row["right"] else "WRONG",
    "found": lambda row: row["found"],
}


class SpoiltDevice(RuntimeError):
    """After this error CUDA does nothing any more in this process."""


@dataclass(frozen=True)
class Check:
    name: str
    of: str
    dtype: torch.dtype
    work: Callable[[], tuple[bool, str]]
    """Whether it is right, and what was found."""


def run_checks(
    checks: Iterable[Check], findings: Findings, time: Allowance, after: int, save: Callable[[], None]
) -> None:
    """A row for each; the first ``after`` were run before.

    A check's row is there, as wrong, before it is run: should the process die of it, its row says so.

    Raises:
        SpoiltDevice: a check left the GPU unusable; the others need a process of their own.
    """
    for number, check in enumerate(checks):
        if number < after:
            continue
        if time.left <= 0:
            findings.note(f"time is up: left out {check.name}, {check.of} in {_name(check.dtype)} and on")
            return
        about = {"check": check.name, "of": check.of, "dtype": _name(check.dtype)}
        findings.row(**about, right=False, found="it did not come back")
        save()
        spoilt = False
        try:
            right, found = check.work()
        except Exception as error:
            right, found = False, f"{type(error).__name__}: {error}"[:MOST_WORDS]
            spoilt = spoils(error)
        findings.rows[-1] |= {"right": bool(right), "found": found}
        save()
        if spoilt:
            raise SpoiltDevice(found)


def spoils(error: Exception) -> bool:
    """Whether CUDA is of no more use to this process: after an illegal address, not after a full memory or a
    kernel that the compiler refused."""
    text = str(error).lower()
    lost = ("cuda error", "cuda driver error", "unspecified launch failure", "illegal memory access")
    return any(words in text for words in lost) and "out of memory" not in text


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
