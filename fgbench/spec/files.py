"""Options in TOML files: a run's folder holds one, and ``--config`` reads one. And a hash of options."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fgengine.files import replacing
from fgengine.settings import described

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1_000_000


def read_options(path: Path) -> dict[str, Any]:
    """By option, as in ``num-prompts = 150``. Raises ValueError for a file that is no TOML, or has tables."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{path}: a file of {size:,} bytes is too large for options")
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config: {path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} is no TOML file: {error}") from None
    for name, value in options.items():
        if isinstance(value, dict):
            raise ValueError(f"{path}: options stand in no table; write the options of [{name}] without it")
    return options


def write_options(path: Path, options: Mapping[str, Any]) -> None:
    """Options that are None are left out: their defaults are."""
    with replacing(path) as partial:
        partial.write_bytes(tomli_w.dumps(toml(options)).encode())


def toml(options: Mapping[str, Any]) -> dict[str, Any]:
    """By option name, as TOML takes them."""
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, Path):
            value = str(value.absolute())  # the file may be read from elsewhere
        plain[name.replace("_", "-")] = list(value) if isinstance(value, tuple) else value
    return plain


def options_of(*specs: Any) -> dict[str, Any]:
    """The options of some dataclasses of settings, by name, but for secret ones."""
    return {
        one.name: getattr(spec, one.name)
        for spec in specs
        for one in described(type(spec))
        if not one.setting.secret
    }


def fingerprint(**parts: Any) -> str:
    """SHA-256 over the parts as canonical JSON: the order of keys does not matter, any value does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
