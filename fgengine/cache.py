"""Where pulled models, data, profiles and compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """FGBENCH_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("FGBENCH_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("fgbench")
