"""Runs ``fgbench sweep`` twice: first undisturbed, then killed (kill -9) and resumed several times.

    python killer.py SHARE,SHARE,... UNDISTURBED KILLED ARGUMENT...

Each attempt of the second sweep is killed after a share of the seconds that the first sweep took. UNDISTURBED
and KILLED are the folders for --results. Sweeps run in forked processes, so the program is imported only
once. Prints the exit codes of the second sweep's attempts as JSON.
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
"""Imported before the forks, so that a kill rarely hits an import."""


def fork_sweep(argv: list[str]) -> int:
    """Start a sweep in a forked process; return its process id."""
    if child := os.fork():
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        app(["sweep", *argv])
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    os._exit(0)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    shares = [float(text) for text in sys.argv[1].split(",")]
    undisturbed, killed, argv = sys.argv[2], sys.argv[3], sys.argv[4:]
    start = time.monotonic()
    assert exit_code(fork_sweep([*argv, "--results", undisturbed])) == 0
    seconds = time.monotonic() - start
    codes: list[int] = []
    while not codes or (codes[-1] < 0 and len(codes) <= len(shares)):
        exists = any(Path(killed).glob("*_sweep/sweep.json"))
        child = fork_sweep([*(["--resume"] if exists else []), *argv, "--results", killed])
        if len(codes) < len(shares):
            time.sleep(shares[len(codes)] * seconds)
            os.kill(child, signal.SIGKILL)
        codes.append(exit_code(child))
    print(json.dumps(codes))


main()
