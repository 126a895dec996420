"""Where pulled models, data, profiles and compiled kernels are kept, and how to tell that they are whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fgengine.files import replacing


def cache_folder() -> Path:
    """FGBENCH_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("FGBENCH_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("fgbench")


def keep(path: Path, content: bytes) -> None:
    """Writes the file and its hash beside it, as ``sha256sum`` does, both on disk when this returns.

    A reader sees the old file or the new one, whatever dies meanwhile. Raises OSError where the folder cannot
    be written: it is read-only, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, content)
    write_durably(_hash_file(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())


def is_whole(path: Path) -> bool:
    """Whether the file is what ``keep`` wrote, not cut off, damaged or changed by hand."""
    try:
        wanted = _hash_file(path).read_text(encoding="utf-8", errors="replace").split()[:1]
        return wanted == [hashlib.sha256(path.read_bytes()).hexdigest()]
    except OSError:
        return False


def write_durably(path: Path, content: bytes) -> None:
    """Replaces the file in one step, once the new content is on disk. Raises OSError."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock file; ``waiting`` is called once where another process holds it.

    The system lets go of it when the process ends, however it ends. Raises OSError where the file cannot be
    made.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
