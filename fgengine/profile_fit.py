"""Fits the cost model to measured steps, by non-negative least squares of relative errors. Pure.

Two forms are fitted. On a CPU, a step's seconds are a sum. On a GPU they contain a maximum: the linear layers
take the longer of reading their weights and of their arithmetic (``matmul_step`` and ``matmul_token``). A sum
fitted to such a machine predicts a prompt of 1,000 tokens 35 to 43% too low. Its held-out error is only 3 to
6%, because most points of a grid are below the knee.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgengine.cost import CostModel, StepShape
from fgengine.profile_grid import TimedStep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_STEP_SECONDS = 1e-6
MAX_REFINEMENTS = 20
"""Maximum number of times that points change sides of the knee. A few are enough."""


def fit(
    points: Sequence[TimedStep], copy_bytes_per_second: float, *, with_maximum: bool = False
) -> CostModel:
    """Fit the cost model to the points that are not held out.

    It minimizes the sum of squared relative errors, with all coefficients >= 0.

    Args:
        with_maximum: fit the form of a GPU, with a maximum, instead of a sum.
    """
    fitted = [point for point in points if not point.held_out]
    if not with_maximum:
        return _fitted(fitted, copy_bytes_per_second, None)
    # Each side of the knee is linear, but the sides depend on the fit. So start from each possible knee, and
    # move the points to the sides that the fit gives them until they stay there.
    tokens = sorted({point.shape.new_tokens for point in fitted})
    starts = [_refined(fitted, copy_bytes_per_second, knee) for knee in tokens]
    candidates = [_fitted(fitted, copy_bytes_per_second, None), *starts]
    return min(candidates, key=lambda cost: _squared_error(cost, fitted))


def _refined(points: Sequence[TimedStep], copy_bytes_per_second: float, knee: float) -> CostModel:
    """Fit with a knee at ``knee`` tokens; repeat with the knee of the fit until it no longer changes."""
    best = _fitted(points, copy_bytes_per_second, knee)
    for _ in range(MAX_REFINEMENTS):
        if best.matmul_step == 0.0 or best.matmul_token == 0.0:
            break
        found = best.matmul_step / best.matmul_token
        again = _fitted(points, copy_bytes_per_second, found)
        if _squared_error(again, points) >= _squared_error(best, points):
            break
        best = again
    return best


def _fitted(points: Sequence[TimedStep], copy_bytes_per_second: float, knee: float | None) -> CostModel:
    """Fit linearly: steps of at most ``knee`` tokens read weights, larger ones compute. None: a plain sum."""
    import numpy as np

    rows = np.array([_features(point.shape, knee) for point in points])
    solution = _non_negative(rows / np.array([[point.seconds] for point in points]))
    step, request, token, pair, decode, context, *maximum = solution
    return CostModel(
        max(step, MIN_STEP_SECONDS), request, token, pair, decode, context, copy_bytes_per_second, *maximum
    )


def _non_negative(rows: NDArray[np.float64]) -> list[float]:
    """Return the coefficients >= 0 with which the columns of ``rows`` come closest to a sum of 1."""
    import numpy as np
    from scipy.optimize import nnls

    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0.0] = 1.0
    solution, _ = nnls(rows / scale, np.ones(len(rows)))
    return [float(value) for value in solution / scale]


def _features(shape: StepShape, knee: float | None) -> list[float]:
    """Return the factors of CostModel's coefficients, in their order."""
    linear = [
        1.0,
        shape.prefill_requests,
        shape.prefill_tokens,
        shape.prefill_pairs,
        shape.decode_requests,
        shape.decode_context,
    ]
    if knee is None:
        return linear
    reads = shape.new_tokens <= knee
    return [*linear, 1.0 if reads else 0.0, 0.0 if reads else shape.new_tokens]


def _squared_error(cost: CostModel, points: Sequence[TimedStep]) -> float:
    return sum((cost.step_seconds(point.shape) / point.seconds - 1.0) ** 2 for point in points)
