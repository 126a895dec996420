"""Files that are never seen half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` to write to. It takes that name in one step when the block ends well.

    A reader sees the old file or the new one, never half of one. Raises OSError where the folder cannot be
    written or the disk is full.

        with replacing(folder / "run.json") as partial:
            partial.write_text(text)
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
