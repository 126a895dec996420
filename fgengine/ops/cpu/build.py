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

from fgengine.cache import cache_folder, is_whole, keep
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
            library = _library(compiler, flags)
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


def _library(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """From the cache, where the file's name says all that decides its content, else compiled now."""
    sources = [file.read_bytes() for file in sorted(SOURCE.parent.glob("*.[ch]"))]
    what = (*sources, *(text.encode() for text in (os.path.realpath(compiler), *flags, *sorted(cpu_flags()))))
    path = cache_folder() / "kernels" / f"{hashlib.sha256(bytes(1).join(what)).hexdigest()[:24]}.so"
    if is_whole(path):
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory() as scratch:
        compiled, linked = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
        _run([compiler, *flags, "-c", str(SOURCE), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), "-o", str(linked), "-lm"])
        try:
            keep(path, linked.read_bytes())
        except OSError as error:
            log.warning("the compiled CPU kernels cannot be kept (%s): each start compiles them", error)
            return ctypes.CDLL(str(linked))
    return ctypes.CDLL(str(path))


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
