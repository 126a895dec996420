"""What policies that rank by a predicted output length share."""

from __future__ import annotations

from fgengine.cost import CostModel
from fgengine.request import Request
from fgengine.scheduling.policy import PolicyContext, SortedPolicy
from fgengine.scheduling.predictor import Prediction, Predictor


class PredictingPolicy(SortedPolicy):
    """Asks the predictor once, when a request comes, and teaches it when one has finished by itself."""

    needs_cost = True
    needs_predictor = True

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        if context.cost is None or context.predictor is None:
            raise ValueError("this policy takes a cost model and a predictor of output lengths")
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
