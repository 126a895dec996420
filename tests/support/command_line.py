"""Run ``fgbench`` in this process, as tests of its command line do: ``from command_line import fgbench``."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from fgbench.cli.main import app


def fgbench(verb: str, *argv: object) -> Any:
    """Run a verb with arguments, in a terminal of 200 columns. Return its exit code and output."""
    return CliRunner().invoke(app, [verb, *map(str, argv)], terminal_width=200)


def words(output: str) -> str:
    """Return the output without line breaks and alignment."""
    return " ".join(output.split())
