"""One hash for everything that decides a run's result."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(**parts: Any) -> str:
    """SHA-256 over the parts as canonical JSON: the order of keys does not matter, any value does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
