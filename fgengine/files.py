"""Writes files so that a reader never sees an incomplete one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a temporary path next to ``path`` to write to. It replaces ``path`` if the block succeeds.

    The replacement is atomic: a reader sees the complete old or the complete new file. Raises OSError if the
    folder is read-only or the disk is full.

        with replacing(folder / "run.json") as partial:
            partial.write_text(text)
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with named_errors(path):
            yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give an OSError in the block the path, if it has none: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
