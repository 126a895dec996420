"""Imports the classes that users name as ``package.module:Class``."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from typing import Any


def load(kind: str, name: str, target: str) -> Any:
    """Import and return the object that ``target`` names.

    The module may lie in the working folder. That folder joins ``sys.path``, as the last entry, only if the
    module is found nowhere else, and never if Python was started with ``-P``.

    Args:
        kind: The kind of object, for the error message, such as ``policy``.
        name: The name that the user gave, for the error message.
        target: ``package.module:attribute``.

    Raises:
        ValueError: the module cannot be imported, for any reason, or has no such attribute.
    """
    module, _, attribute = target.partition(":")
    try:
        _find_in_working_folder(module.partition(".")[0])
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else repr(error)
        raise ValueError(f"{kind} {name!r} could not be loaded from {target}: {reason}") from error


def _find_in_working_folder(package: str) -> None:
    if find_spec(package) is None and not getattr(sys.flags, "safe_path", False):
        sys.path.append(os.getcwd())
