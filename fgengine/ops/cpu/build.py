"""Compiles the CPU kernels for this processor with the system's C compiler and caches the result."""

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

from fgengine.cache import cache_folder, is_whole, keep
from fgengine.ops.cpu.processor import cpu_flags

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC")
TIMEOUT = 120.0
"""Seconds for one run of the compiler."""

SIGNATURES = {
    "run": (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64),
    "forbid": (
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
    ),
    "lanes": (),
    "group": (),
}


@lru_cache(maxsize=2)
def kernels(bfloat16: bool) -> ctypes.CDLL | None:
    """Return the kernel library for bfloat16 or float32. Logs why and returns None if it cannot be built."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        log.warning(
            "no C compiler (cc, gcc or clang) was found, so the CPU computes with plain torch, more slowly: "
            "install one"
        )
        return None
    # torch has already loaded an OpenMP library, and a second team of threads would compete with its own. So
    # the code is compiled for OpenMP but not linked with it: its calls go to torch's library. If this fails,
    # it is compiled without OpenMP.
    for parallel in (("-fopenmp",), ()):
        flags = (*FLAGS, *parallel, *(("-DBFLOAT16",) if bfloat16 else ()))
        try:
            library = _library(compiler, flags)
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            log.info("CPU kernels with %s: %s", " ".join(flags), reason)
            continue
        for name, arguments in SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        return library
    log.warning(
        "the CPU kernels could not be compiled (%s), so the CPU computes with plain torch, more slowly",
        reason,
    )
    return None


def _library(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Load the library from the cache, or compile it. Its file name is a hash of everything it depends on."""
    sources = [file.read_bytes() for file in sorted(SOURCE.parent.glob("*.[ch]"))]
    settings = (text.encode() for text in (os.path.realpath(compiler), *flags, *sorted(cpu_flags())))
    key = hashlib.sha256(bytes(1).join((*sources, *settings))).hexdigest()[:24]
    path = cache_folder() / "kernels" / f"{key}.so"
    if is_whole(path):
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory() as scratch:
        compiled, linked = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
        _run([compiler, *flags, "-c", str(SOURCE), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), "-o", str(linked), "-lm"])
        try:
            keep(path, linked.read_bytes())
        except OSError as error:
            log.warning("the compiled CPU kernels cannot be cached (%s), so each start compiles them", error)
            return ctypes.CDLL(str(linked))
    return ctypes.CDLL(str(path))


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
