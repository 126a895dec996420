"""Which packages each section needs. Imports none of them: this is asked before anything else is done."""

from __future__ import annotations

from importlib.util import find_spec

BASIC = ("torch", "triton", "numpy", "psutil", "rich", "safetensors", "sortedcontainers")
"""What every section needs."""
SERVERS = ("aiohttp", "httptools", "jinja2", "msgspec", "pyarrow", "scipy", "tokenizers", "typer")
"""What a server and its client need besides; scipy fits the profile."""
BESIDES = {"serving": SERVERS, "vllm": SERVERS}


def missing(section: str | None = None) -> list[str]:
    """Of what a section needs besides; None: of what all need."""
    needed = BASIC if section is None else BESIDES.get(section, ())
    return [name for name in needed if find_spec(name) is None]
