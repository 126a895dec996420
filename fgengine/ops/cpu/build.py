"""Compiles the kernels for this processor with the system's C compiler, once, into the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from fgengine.cache import cache_folder
from fgengine.ops.cpu.processor import cpu_flags

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC")
TIMEOUT = 120.0

SIGNATURES = {
    "run": (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64),
    "lanes": (),
    "group": (),
}


@lru_cache(maxsize=2)
def kernels(bfloat16: bool) -> ctypes.CDLL | None:
    """The library for bfloat16 or float32; None, with a reason in the log, where it cannot be made."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        log.warning("no C compiler (cc, gcc or clang) here: the CPU computes with plain torch, more slowly")
        return None
    # torch has loaded its OpenMP, and one pool of threads is enough for two cores: the code is compiled for
    # OpenMP but not linked with any, so that its calls go to torch's. Where that fails it does without.
    for parallel in (("-fopenmp",), ()):
        flags = (*FLAGS, *parallel, *(("-DBFLOAT16",) if bfloat16 else ()))
        try:
            library = ctypes.CDLL(str(_built(compiler, flags)))
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            log.info("CPU kernels with %s: %s", " ".join(flags), reason)
            continue
        for name, arguments in SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        return library
    log.warning(
        "the CPU kernels could not be compiled (%s): plain torch computes instead, more slowly", reason
    )
    return None


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    """The compiled library's path; the name says all that decides its content."""
    sources = [file.read_bytes() for file in sorted(SOURCE.parent.glob("*.[ch]"))]
    what = (*sources, *(text.encode() for text in (os.path.realpath(compiler), *flags, *sorted(cpu_flags()))))
    name = hashlib.sha256(b"\0".join(what)).hexdigest()[:24]
    folder = cache_folder() / "kernels"
    path = folder / f"{name}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            compiled, linked = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
            _run([compiler, *flags, "-c", str(SOURCE), "-o", str(compiled)])
            _run([compiler, "-shared", str(compiled), "-o", str(linked), "-lm"])
            os.replace(linked, path)  # whole or not at all, should another process do the same
    return path


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
