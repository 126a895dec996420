"""Prints sentences on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console, sentence: str, style: str = "") -> None:
    """Print a sentence as it is: no markup, no highlighting, and the terminal wraps it."""
    console.print(sentence, style=style, soft_wrap=True, highlight=False, markup=False)
