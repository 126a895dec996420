"""Runs ``fgbench sweep`` once, and then once more but killed (kill -9) over and over until it is done.

    python killer.py SHARE,SHARE,... UNDISTURBED KILLED ARGUMENT...

A share is of the seconds that the undisturbed sweep took; UNDISTURBED and KILLED are for --results. Forked,
so that the program is imported once. Prints the exit codes of the second's attempts as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet

import fgbench.backends.simulated
import fgbench.cli.simulate
import fgbench.cli.sweep
import fgbench.sweeping.folder
import fgbench.sweeping.prepared
import fgbench.sweeping.runner
from fgbench.cli.main import app

IMPORTED = (psutil, pyarrow.parquet, fgbench)
"""Before the forks, so that a kill seldom hits an import."""


def fork_sweep(argv: list[str]) -> int:
    """The process that runs it."""
    if child := os.fork():
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        app(["sweep", *argv])
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(0)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    shares = [float(text) for text in sys.argv[1].split(",")]
    undisturbed, killed, argv = sys.argv[2], sys.argv[3], sys.argv[4:]
    began = time.monotonic()
    assert ended(fork_sweep([*argv, "--results", undisturbed])) == 0
    whole = time.monotonic() - began
    codes: list[int] = []
    while not codes or (codes[-1] < 0 and len(codes) <= len(shares)):
        begun = any(Path(killed).glob("*_sweep/sweep.json"))
        child = fork_sweep([*(["--resume"] if begun else []), *argv, "--results", killed])
        if len(codes) < len(shares):
            time.sleep(shares[len(codes)] * whole)
            os.kill(child, signal.SIGKILL)
        codes.append(ended(child))
    print(json.dumps(codes))


main()
