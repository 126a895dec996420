"""The styles of the backends of a comparison: a policy has the same one in every picture. Pure."""

from __future__ import annotations

from fgbench.report.comparison import Comparison
from fgbench.report.pictures.picture import FAMILIES, styles


def styles_of(comparison: Comparison) -> dict[str, int]:
    """Return the style of each label: a policy has the same one in every picture."""
    return styles({label: _family(comparison, label) for label in comparison.labels})


def _family(comparison: Comparison, label: str) -> str | None:
    """Return the policy of our engine, or the kind of another backend that has a style."""
    backend = comparison.of(label)[0].entries[0].run.info.get("backend") or {}
    if policy := backend.get("policy"):
        return str(policy)
    name = str(backend.get("name"))
    kinds = [kind for kind in FAMILIES if name == kind or name.startswith(f"{kind}-")]
    return max(kinds, key=len, default=None)
