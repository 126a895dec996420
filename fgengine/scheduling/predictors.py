"""Predictors of output lengths by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgengine.scheduling.lookup import load
from fgengine.scheduling.predictor import Noisy, Oracle, Predictor

LEARNED = "learned"
METHODS = ("predict", "learn", "close")
"""Of a ``Predictor``."""


def check_predictor(name: str) -> None:
    """Raises ValueError for a name that ``make_predictor`` does not know, without making anything."""
    if name != LEARNED:
        _factory(name)


def make_predictor(name: str, model: str, *, keep: bool = True) -> Predictor:
    """``oracle``, ``noisy:SIGMA``, ``learned``, or a ``package.module:Class`` that is made without arguments.

    ``learned`` goes on from what is kept for ``model``; ``keep``: whether to keep what it learns from now on.

    Raises:
        ValueError: there is no such predictor, it cannot be made, or what is kept is damaged.
    """
    if name == LEARNED:
        from fgengine.scheduling.learned import open_predictor  # numpy, and scikit-learn to go on learning

        return open_predictor(model, keep=keep)
    return _factory(name)()


def _factory(name: str) -> Callable[[], Predictor]:
    kind, colon, value = name.partition(":")
    if kind == "noisy" and colon:
        try:
            sigma = float(value)
        except ValueError:
            raise ValueError(f"noisy:SIGMA takes a number, such as noisy:0.5, not {value!r}") from None
        noisy = Noisy(sigma)
        return lambda: noisy
    if name == "oracle":
        return Oracle
    if not colon or kind in ("oracle", LEARNED):
        raise ValueError(
            f"there is no predictor {name!r}; there are oracle, noisy:SIGMA, learned, or package.module:Class"
        )
    return _from_elsewhere(name, load("predictor", name, name))


def _from_elsewhere(name: str, found: Any) -> Callable[[], Predictor]:
    if not isinstance(found, type) or not all(callable(getattr(found, method, None)) for method in METHODS):
        raise ValueError(f"predictor {name!r} is not a class with the methods {', '.join(METHODS)}")

    def make() -> Predictor:
        try:
            made: Predictor = found()
        except Exception as error:
            raise ValueError(
                f"predictor {name!r}: its __init__() raised {type(error).__name__}: {error}"
            ) from error
        return made

    return make
