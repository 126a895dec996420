"""Sentences on the terminal: as they are, without markup, wrapped by the terminal and not by us."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console, sentence: str, style: str = "") -> None:
    console.print(sentence, style=style, soft_wrap=True, highlight=False, markup=False)
