"""A progress bar on the terminal, for whoever started the engine from one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(what: str) -> Callable[[Sequence[T]], Iterable[T]]:
    """What goes over a sequence and draws how far it has come on standard error, if that is a terminal."""

    def over(sequence: Sequence[T]) -> Iterable[T]:
        if not sys.stderr.isatty():
            return sequence
        from rich.console import Console
        from rich.progress import track as bar

        return bar(sequence, description=what, console=Console(stderr=True), transient=True)

    return over
