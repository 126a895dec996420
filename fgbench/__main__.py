"""``python -m fgbench`` is the program ``fgbench``."""

from __future__ import annotations

import sys

from fgbench.cli.signals import exit_on_signals


def main() -> None:
    """Run the program with the arguments of the command line."""
    exit_on_signals(serves=sys.argv[1:2] == ["serve"])
    from fgbench.cli.main import app  # only now, because it takes long

    app(prog_name="fgbench")


if __name__ == "__main__":
    main()
