"""Finds what users may bring along: ``package.module:Class``."""

from __future__ import annotations

import importlib
from typing import Any


def load(kind: str, name: str, target: str) -> Any:
    """What ``target``, ``package.module:attribute``, names.

    ``kind`` and ``name`` are for the message, such as the policy called ``mine``. Raises ValueError where it
    cannot be imported, whatever the module does wrong.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is another package's
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else repr(error)
        raise ValueError(f"{kind} {name!r} could not be loaded from {target}: {reason}") from error
