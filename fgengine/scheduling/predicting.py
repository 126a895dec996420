"""Base class of the policies that rank requests by a predicted output length."""

from __future__ import annotations

from fgengine.cost import CostModel
from fgengine.request import Request
from fgengine.scheduling.policy import PolicyContext, SortedPolicy
from fgengine.scheduling.predictor import Prediction, Predictor


class PredictingPolicy(SortedPolicy):
    """A sorted policy that predicts each request's output length once, when the request arrives.

    The predictor learns from every request that finishes normally ("stop" or "length"). Subclasses implement
    ``key`` and read ``self.predictions`` (by request id) and ``self.cost`` there.

    Raises ValueError if the context has no cost model or no predictor.
    """

    needs_cost = True
    needs_predictor = True

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        if context.cost is None or context.predictor is None:
            raise ValueError(
                "this policy needs a cost model and a predictor of output lengths: give --profile and "
                "--predictor"
            )
        self.cost: CostModel = context.cost
        self.predictor: Predictor = context.predictor
        self.predictions: dict[str, Prediction] = {}

    def add(self, request: Request, now: float) -> None:
        self.predictions[request.id] = self.predictor.predict(request)
        super().add(request, now)

    def remove(self, request: Request) -> None:
        super().remove(request)
        del self.predictions[request.id]
        if request.finish_reason in ("stop", "length"):
            self.predictor.learn(request)
