"""The curves of the FastServe paper, as its public artifact plots them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

Curve = list[tuple[float, float]]
"""(requests per second, latency per output token in seconds), by rising rate."""


@cache
def published_curves() -> Mapping[str, Mapping[str, Curve]]:
    """Return the published curves by panel and system, such as "fig11-sharegpt" and "fastgen"."""
    text = Path(__file__).with_name("published.json").read_text(encoding="utf-8")
    return {
        panel: {system: [(rate, value) for rate, value in curve] for system, curve in systems.items()}
        for panel, systems in json.loads(text)["panels"].items()
    }
