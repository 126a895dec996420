"""Reads and writes options as TOML files, and computes fingerprints of options.

Every run folder holds such a file, and ``--config`` reads one.
"""

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
    """Read a TOML file such as ``num-prompts = 150`` and return the options by name.

    Raises ValueError if the file cannot be read, is not TOML, or has tables.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(
                f"{path} has {size:,} bytes, which is too large: give a file of at most {MAX_BYTES:,} bytes"
            )
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config: {path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} is not a TOML file: {error}") from None
    for name, value in options.items():
        if isinstance(value, dict):
            raise ValueError(f"{path}: options must not be in a table: remove the line [{name}]")
    return options


def write_options(path: Path, options: Mapping[str, Any]) -> None:
    """Write options to a TOML file, without those that are None."""
    with replacing(path) as partial:
        partial.write_bytes(tomli_w.dumps(toml(options)).encode())


def toml(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options to keys and values that TOML can hold; leave out those that are None."""
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, Path):
            value = str(value.absolute())  # the file may be read from another directory
        plain[name.replace("_", "-")] = list(value) if isinstance(value, tuple) else value
    return plain


def options_of(*specs: Any) -> dict[str, Any]:
    """Return the options of several dataclasses of settings by name, without secret ones."""
    return {
        option.name: getattr(spec, option.name)
        for spec in specs
        for option in described(type(spec))
        if not option.setting.secret
    }


def fingerprint(**parts: Any) -> str:
    """Return the SHA-256 of the parts as canonical JSON. The order of keys does not matter."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
