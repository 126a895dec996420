"""Creates new folders, and writes JSON files so that readers never see half of one."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fgengine.files import replacing


def fresh_folder(root: Path, *parts: str) -> Path:
    """Create ``root/<time>_<part>_<part>``; if it exists, append a number.

    Raises:
        ValueError: a thousand folders with this name exist.
    """
    tail = "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", part) for part in parts)
    stem = f"{datetime.now().strftime('%Y%m%d-%H%M%S')}_{tail}"
    for attempt in range(1, 1000):
        path = root / (stem if attempt == 1 else f"{stem}_{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise ValueError(f"{root} already holds a thousand folders called {stem}: remove some or wait a second")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Replace the file atomically: a reader sees the old file or the new one."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def now() -> str:
    """Return the current time in UTC as ISO 8601, with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
