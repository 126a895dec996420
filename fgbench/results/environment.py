"""Describes the machine and software of a run, which a reader needs to judge its figures."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from fgengine.ops.cpu.processor import cpu_name

PACKAGES = (
    "fgbench",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "aiohttp",
    "httptools",
    "uvloop",
    "vllm",
)


def environment() -> dict[str, Any]:
    """Return the client's machine and software; results/README.md describes the keys.

    It does not describe a server on another machine.
    """
    import psutil

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the checkout's commit, or None for an installed package.

    The commit has the suffix ``-dirty`` if tracked files differ from it.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
