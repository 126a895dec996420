"""A fixture that compiles kernels for GPUs that this machine does not have."""

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
    """A kernel compiled for one launch."""

    kernel: str
    grid: list[int]
    registers: int
    """Registers per thread."""
    spilt: int
    """Bytes per thread that are spilled from registers to memory."""
    shared: int
    """Bytes of shared memory per program."""
    warps: int
    key: str
    """The same for launches that share one compiled kernel."""


@pytest.fixture(scope="session")
def compiled() -> Callable[..., list[Compiled]]:
    """``compiled(function, *arguments, architecture=90)``: compiles each kernel launch in a function.

    The function must be at the top level of its file, take arguments that JSON can encode, and launch on the
    "meta" device. It is called in a process without Triton's interpreter (see compiled.py).
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
