"""The cache folder of pulled models, data, profiles and compiled kernels, and the check for damaged files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fgengine.files import replacing


def cache_folder() -> Path:
    """Return the cache folder: the environment variable FGBENCH_CACHE, or a folder in the user's cache."""
    if chosen := os.environ.get("FGBENCH_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("fgbench")


def keep(path: Path, content: bytes) -> None:
    """Write a file, and its hash next to it in the format of ``sha256sum``. Both are on disk when this
    returns.

    Even after a crash, a reader sees the complete old or new content of each file. Raises OSError if the
    folder is read-only or the disk is full.

        keep(path, content)
        is_whole(path)  # True
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, content)
    write_durably(_hash_file(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())


def is_whole(path: Path) -> bool:
    """Whether the file has the content that ``keep`` wrote: it was not truncated, damaged or changed."""
    try:
        wanted = _hash_file(path).read_text(encoding="utf-8", errors="replace").split()[:1]
        return wanted == [hashlib.sha256(path.read_bytes()).hexdigest()]
    except OSError:
        return False


def write_durably(path: Path, content: bytes) -> None:
    """Replace the file atomically after the new content is on disk. Raises OSError."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file during the block. ``waiting`` is called once if another process holds the lock.

    The operating system releases the lock when the process ends, even if it is killed. Raises OSError if the
    file cannot be created.
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
