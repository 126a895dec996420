"""Starts one of our modules in a child process, so that it imports nothing from the working folder.

``python -m`` puts the working folder first in ``sys.path``. A file there called ``random.py`` would then be
imported in place of the standard library's (CWE-427).
"""

from __future__ import annotations

import sys

_RUN_MODULE = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module as ``python -m`` does, but without the working folder in ``sys.path``.

    subprocess.run(python_module("fgbench", "models", "pull", "smollm2-135m"))
    """
    careful = ["-P"] if getattr(sys.flags, "safe_path", False) else []
    return [sys.executable, *careful, "-c", _RUN_MODULE, name, *arguments]
