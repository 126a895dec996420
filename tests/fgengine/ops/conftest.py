"""Compiling kernels for GPUs that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Compiled(NamedTuple):
    kernel: str
    grid: list[int]
    registers: int
    """A thread."""
    spilt: int
    """Bytes of registers a thread keeps in memory instead."""
    shared: int
    """Bytes of shared memory a program."""
    warps: int
    key: str
    """The same for launches that share one compiled kernel."""


@pytest.fixture(scope="session")
def compiled() -> Callable[..., list[Compiled]]:
    """``compiled(function, *arguments, architecture=90)``: what each launch in a function comes to.

    The function stands at the top of its file, takes what JSON holds, and launches on the "meta" device; it
    is called in a process without the interpreter (see compiled.py).
    """
    pytest.importorskip("triton", reason="there is no Triton on this platform")

    def compile_launches(
        function: Callable[..., None], *arguments: Any, architecture: int = 90
    ) -> list[Compiled]:
        script = Path(__file__).with_name("compiled.py")
        called = [function.__code__.co_filename, function.__name__, str(architecture), json.dumps(arguments)]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        ran = subprocess.run(
            [sys.executable, script, *called], env=environment, capture_output=True, text=True, timeout=110
        )
        assert ran.returncode == 0, ran.stderr
        return [Compiled(**launch) for launch in json.loads(ran.stdout)]

    return compile_launches
