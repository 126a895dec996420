"""Importing the library changes nothing in the process that imports it."""

from __future__ import annotations

import subprocess
import sys


def ran(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_environment_is_unchanged_and_torch_is_not_imported() -> None:
    code = "import os, sys; before = dict(os.environ); import fgengine; "
    assert ran(code + "print(dict(os.environ) == before, 'torch' in sys.modules)") == "True False\n"


def test_idle_threads_of_an_engines_process_sleep_instead_of_spinning() -> None:
    """The variable must be set before torch is imported, because OpenMP reads it then."""
    code = "import os; os.environ.pop('GOMP_SPINCOUNT', None)\nimport sys, fgengine.execution\n"
    assert ran(code + "print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)") == "1000 False\n"
