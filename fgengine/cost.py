"""The cost model: it predicts the duration of a step from the step's shape. Pure.

A step reads every weight once (a constant cost). It computes the linear layers for each new token, and
attention between each new token and the tokens before it. Decodes read the KV cache. Each of these costs has
one coefficient, in seconds per unit, that is fitted to measured steps (``fgengine.profile``).

On a CPU the costs add up. A GPU reads weights while it computes with others, so its linear layers take the
longer of the two: reading the weights, or the arithmetic of all new tokens. Up to some hundred tokens a step
takes equally long; above that it grows with each token. ``matmul_step`` and ``matmul_token`` describe this.
Attention has its own kernels, which run before or after the linear layers, so its costs add up here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from fgengine.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepShape:
    """The quantities that determine a step's duration, as sums over the step's items."""

    prefill_requests: int = 0
    """Items with more than one token: prompts, chunks, recomputed requests."""
    prefill_tokens: int = 0
    """New tokens of these items."""
    prefill_pairs: int = 0
    """(new token, attended token) pairs of these items: n * start + n * (n + 1) / 2 each."""
    decode_requests: int = 0
    """Items with one token."""
    decode_context: int = 0
    """Tokens that the decodes attend to, including the new one."""

    @property
    def new_tokens(self) -> int:
        """Tokens that the step computes."""
        return self.prefill_tokens + self.decode_requests

    @classmethod
    def of(cls, items: Iterable[tuple[int, int]]) -> StepShape:
        """Return the shape of a step from (start, num_tokens) of each item."""
        requests = tokens = pairs = decodes = context = 0
        for start, n in items:
            if n == 1:
                decodes += 1
                context += start + 1
            else:
                requests += 1
                tokens += n
                pairs += n * start + n * (n + 1) // 2
        return cls(requests, tokens, pairs, decodes, context)

    @classmethod
    def of_plan(cls, plan: StepPlan) -> StepShape:
        """Return the shape of a planned step."""
        return cls.of((item.start, item.num_tokens) for item in plan.items)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Coefficients of the duration of a step.

    It is step + sum of (coefficient x quantity of ``StepShape``) + max(matmul_step, matmul_token x tokens).

        cost = CostModel(step=0.01, prefill_token=1e-5, decode_request=1e-4)
        cost.step_seconds(StepShape(decode_requests=8, decode_context=1000))
        gpu = CostModel(step=0.001, matmul_step=0.016, matmul_token=1e-4, decode_context=6e-7)

    Raises ValueError if a coefficient is negative or not a number, or if ``step`` or the bandwidth is 0.
    """

    step: float
    """Constant seconds of each step."""
    prefill_request: float = 0.0
    """Seconds per prefill request."""
    prefill_token: float = 0.0
    """Seconds per prefill token."""
    prefill_pair: float = 0.0
    """Seconds per prefill pair."""
    decode_request: float = 0.0
    """Seconds per decode."""
    decode_context: float = 0.0
    """Seconds per token of decode context."""
    copy_bytes_per_second: float = 1e10
    """Bandwidth of KV copies between device and host."""
    matmul_step: float = 0.0
    """Minimum seconds of a step's linear layers: reading their weights. 0 on a CPU."""
    matmul_token: float = 0.0
    """Seconds of the arithmetic of the linear layers per new token, of prefills and decodes. 0 on a CPU."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not value >= 0.0:  # also catches NaN
                raise ValueError(f"cost model: {f.name} must be a number >= 0, not {value}")
        if self.step <= 0.0 or self.copy_bytes_per_second <= 0.0:
            raise ValueError("cost model: step and copy_bytes_per_second must be above 0")

    def step_seconds(self, shape: StepShape) -> float:
        """Predict the seconds of a step."""
        # The context is added last, as by a simulation that takes many decode steps at once: same rounding.
        return (
            self.step
            + self.prefill_request * shape.prefill_requests
            + self.prefill_token * shape.prefill_tokens
            + self.prefill_pair * shape.prefill_pairs
            + self.decode_request * shape.decode_requests
            + self.matmul_seconds(shape.new_tokens)
            + self.decode_context * shape.decode_context
        )

    @property
    def is_linear(self) -> bool:
        """Whether the seconds of steps are a linear function of their shapes, without a maximum."""
        return self.matmul_step == self.matmul_token == 0.0

    def matmul_seconds(self, tokens: int) -> float:
        """Return the seconds that the maximum adds to a step of ``tokens`` new tokens."""
        return max(self.matmul_step, self.matmul_token * tokens)

    def matmul_share(self, tokens: int, batch_size: int) -> float:
        """Return one request's part of ``matmul_seconds`` in a full batch, in which the others decode.

        A decode's part is one of ``batch_size`` equal parts. A prefill's part is the rest of its step's: the
        reading of the weights hides its first tokens.

        Args:
            tokens: new tokens of the request.
            batch_size: requests in a full batch.
        """
        decode = self.matmul_seconds(batch_size) / batch_size
        if tokens == 1:
            return decode
        others = batch_size - 1
        return self.matmul_seconds(tokens + others) - others * decode

    def iteration_seconds(self, start: int, num_tokens: int) -> float:
        """Predict the seconds of a step with one request.

        Args:
            start: tokens computed before.
            num_tokens: tokens computed in this step.
        """
        if num_tokens == 1:
            one = self.step + self.decode_request + self.decode_context * (start + 1)
            return one + self.matmul_seconds(1)
        pairs = num_tokens * start + num_tokens * (num_tokens + 1) // 2
        attention = self.prefill_pair * pairs
        return (
            self.step
            + self.prefill_request
            + self.prefill_token * num_tokens
            + attention
            + self.matmul_seconds(num_tokens)
        )

    def added_prefill_seconds(self, start: int, num_tokens: int, batch_size: int) -> float:
        """Predict by how many seconds a prefill extends a step in which the rest of a full batch decodes.

        Args:
            start: tokens computed before.
            num_tokens: tokens computed in this step.
            batch_size: requests in a full batch.
        """
        others = self.matmul_seconds(batch_size - 1)
        own = self.iteration_seconds(start, num_tokens) - self.step - self.matmul_seconds(num_tokens)
        return own + (self.matmul_seconds(num_tokens + batch_size - 1) - others)

    def prefill_seconds(self, prompt_tokens: int) -> float:
        """Predict the TTFT of a prompt on an idle machine, seconds."""
        return self.iteration_seconds(0, prompt_tokens)

    @property
    def min_iteration_seconds(self) -> float:
        """Predicted seconds of the shortest step, in which one request decodes its first token.

        This is q1 of FastServe (NSDI'26).
        """
        return self.iteration_seconds(1, 1)

    def alone_seconds(self, prompt_tokens: int, output_tokens: int) -> float:
        """Predict a request's JCT on an idle machine, seconds: the denominator of slowdown."""
        decodes = output_tokens - 1
        context = decodes * prompt_tokens + decodes * (decodes + 1) // 2
        return (
            self.prefill_seconds(prompt_tokens)
            + decodes * (self.step + self.decode_request + self.matmul_seconds(1))
            + self.decode_context * context
        )

    def share_seconds(self, prompt_tokens: int, output_tokens: int, batch_size: int) -> float:
        """Predict the machine time of a request if every batch is full, seconds.

        The capacity, in requests per second, is 1 / (mean of this over the requests).
        """
        alone = self.alone_seconds(prompt_tokens, output_tokens)
        shared = alone - self.step * output_tokens * (1.0 - 1.0 / batch_size)
        if self.is_linear:
            return shared
        decodes = output_tokens - 1
        hidden = self.matmul_seconds(prompt_tokens) - self.matmul_share(prompt_tokens, batch_size)
        hidden += decodes * (self.matmul_seconds(1) - self.matmul_share(1, batch_size))
        return shared - hidden

    def remaining_share_seconds(
        self, start: int, pending: int, output_tokens: float, batch_size: int
    ) -> float:
        """Predict the remaining machine time of a request, like ``share_seconds``.

        Args:
            start: computed tokens.
            pending: known tokens that are not computed yet.
            output_tokens: output tokens still to come.
            batch_size: requests in a full batch.
        """
        prefill = self.added_prefill_seconds(start, pending, batch_size) if pending > 1 else 0.0
        context = start + pending + output_tokens / 2
        per_token = self.step / batch_size + self.decode_request + self.decode_context * context
        return prefill + output_tokens * (per_token + self.matmul_share(1, batch_size))

    def slowed(self, factor: float) -> CostModel:
        """Return the model of a machine whose steps take ``factor`` times as long. Copies are unchanged."""
        steps = {f.name: getattr(self, f.name) * factor for f in fields(self)}
        return CostModel(**{**steps, "copy_bytes_per_second": self.copy_bytes_per_second})

    def to_dict(self) -> dict[str, float]:
        """Return the coefficients by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, float]) -> CostModel:
        """Create a cost model from the dict of ``to_dict``.

        Raises ValueError if a key is unknown or missing, or a value is out of range.
        """
        known = {f.name for f in fields(cls)}
        if unknown := set(data) - known:
            raise ValueError(f"cost model: unknown keys {sorted(unknown)}")
        if "step" not in data:
            raise ValueError("cost model: the key 'step' is missing")
        return cls(**{key: float(value) for key, value in data.items()})
