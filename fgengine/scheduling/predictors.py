"""Finds and creates predictors of output lengths by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgengine.scheduling.lookup import load
from fgengine.scheduling.predictor import Noisy, Oracle, Predictor

LEARNED = "learned"
METHODS = ("predict", "learn", "close")
"""Method names of ``Predictor``."""


def check_predictor(name: str) -> None:
    """Raise ValueError if ``make_predictor`` does not know the name. Creates no predictor."""
    if name != LEARNED:
        _factory(name)


def make_predictor(name: str, model: str, *, keep: bool = True) -> Predictor:
    """Create a predictor.

        predictor = make_predictor("noisy:0.5", "smollm2-135m")

    Args:
        name: ``oracle``, ``noisy:SIGMA``, ``learned``, or ``package.module:Class``. The class is created
            without arguments.
        model: ``learned`` continues with the file stored for this model.
        keep: whether ``learned`` saves what it learns from now on.

    Raises ValueError if there is no such predictor, it cannot be created, or the stored file is damaged.
    """
    if name == LEARNED:
        from fgengine.scheduling.learned import open_predictor  # imports numpy and scikit-learn

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
    return _imported_factory(name, load("predictor", name, name))


def _imported_factory(name: str, found: Any) -> Callable[[], Predictor]:
    """Return a function that creates the imported class ``found``.

    Raises ValueError if it is not a predictor class.
    """
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
