"""Imports the classes that users name as ``package.module:Class``."""

from __future__ import annotations

import importlib
from typing import Any


def load(kind: str, name: str, target: str) -> Any:
    """Import and return the object that ``target`` names.

    Args:
        kind: the kind of object for the error message, such as ``policy``.
        name: the name the user gave, for the error message.
        target: ``package.module:attribute``.

    Raises ValueError if the import fails for any reason.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else repr(error)
        raise ValueError(f"{kind} {name!r} could not be loaded from {target}: {reason}") from error
