"""Asks a running server what it is: its product, version and settings.

This distinguishes two servers that ran at one URL, one after the other. Servers report it at different paths.
What a server does not report is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fgbench.backends.probe import ask

VERSION_PATHS = ("/version", "/api/version")
"""vLLM, FastGen; Ollama."""
SETTINGS_PATHS = ("/server_info", "/get_server_info", "/info", "/props")
"""FastGen, vLLM in its development mode, new SGLang; old SGLang; TGI; llama.cpp."""
MODEL_KEYS = ("owned_by", "max_model_len", "quantization")
"""Keys of a model in /v1/models that describe how it is served."""
CHANGING = re.compile(
    r"(^|_)(seed|port|time|timestamp|uptime|pid|loads?|usage|throughput|path|dir|host|hostname|id|address|addr|url)$"
    r"|(^|_)(token|key|secret|password|sha|created|started|free)(_|$)|num_(running|waiting)"
)
"""Names of values that differ between two starts of the same server, or that must not be saved."""
MAX_SETTINGS = 200
MAX_CHARACTERS = 200


def ask_identity(url: str) -> dict[str, Any]:
    """Return what the server reports about itself, as plain JSON: ``{"version": "0.32.0", ...}``.

    Values that change from start to start are left out, and so are secrets.
    """
    found: dict[str, Any] = {}
    for path in VERSION_PATHS:
        status, body = ask(f"{url}{path}")
        if status == 200 and isinstance(body, dict) and isinstance(body.get("version"), str):
            found["version"] = body["version"][:MAX_CHARACTERS]
            break
    status, body = ask(f"{url}/v1/models")
    models = body.get("data") if status == 200 and isinstance(body, dict) else None
    if isinstance(models, list) and models and isinstance(models[0], dict):
        found |= _settled({key: models[0].get(key) for key in MODEL_KEYS})
    for path in SETTINGS_PATHS:
        status, body = ask(f"{url}{path}")
        if status == 200 and isinstance(body, dict):
            inner = body.get("settings")
            found |= _settled(inner if isinstance(inner, dict) else body)
            break
    return found


def identity_in_words(identity: Mapping[str, Any]) -> str:
    """Return product and version in words: ``vllm 0.32.0``; empty if the server reports neither."""
    return " ".join(str(identity[key]) for key in ("owned_by", "version") if identity.get(key))


def _settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values that are the same at each start."""
    kept = {
        str(name): value[:MAX_CHARACTERS] if isinstance(value, str) else value
        for name, value in values.items()
        if isinstance(value, str | bool | int | float) and not CHANGING.search(str(name).lower())
    }
    return dict(sorted(kept.items())[:MAX_SETTINGS])
