"""The cost model: how long a step takes, as a sum of a few measured unit costs. Pure.

A step reads every weight once (a constant), does the linear layers for each new token, lets each new
token attend to what stands before it, and reads the KV of what is decoded. Each of these is one
coefficient, in seconds per unit, fitted to measured steps (``fgengine.profile``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from fgengine.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepShape:
    """What decides a step's duration: sums over the step's items."""

    prefill_requests: int = 0
    """Items of more than one token: prompts, chunks, recomputed requests."""
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    """(new token, attended token) pairs of the prefills: n * start + n * (n + 1) / 2 each."""
    decode_requests: int = 0
    decode_context: int = 0
    """Tokens attended to by the decodes, the new one included."""

    @classmethod
    def of(cls, items: Iterable[tuple[int, int]]) -> StepShape:
        """From (start, num_tokens) of each item."""
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
        return cls.of((item.start, item.num_tokens) for item in plan.items)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a step = step + sum of (coefficient x quantity); every coefficient is >= 0.

    Units: seconds per step, per prefill request, per prefill token, per prefill pair, per decode
    request, per token of decode context; ``copy_bytes_per_second`` for KV transfers.
    """

    step: float
    prefill_request: float = 0.0
    prefill_token: float = 0.0
    prefill_pair: float = 0.0
    decode_request: float = 0.0
    decode_context: float = 0.0
    copy_bytes_per_second: float = 1e10

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not value >= 0.0:  # also catches NaN
                raise ValueError(f"cost model: {f.name} must be a number >= 0, not {value}")
        if self.step <= 0.0 or self.copy_bytes_per_second <= 0.0:
            raise ValueError("cost model: step and copy_bytes_per_second must be above 0")

    def step_seconds(self, shape: StepShape) -> float:
        return (
            self.step
            + self.prefill_request * shape.prefill_requests
            + self.prefill_token * shape.prefill_tokens
            + self.prefill_pair * shape.prefill_pairs
            + self.decode_request * shape.decode_requests
            + self.decode_context * shape.decode_context
        )

    def iteration_seconds(self, start: int, num_tokens: int) -> float:
        """One request's next iteration, alone: ``num_tokens`` new tokens behind ``start`` computed ones."""
        if num_tokens == 1:
            return self.step + self.decode_request + self.decode_context * (start + 1)
        pairs = num_tokens * start + num_tokens * (num_tokens + 1) // 2
        return self.step + self.prefill_request + self.prefill_token * num_tokens + self.prefill_pair * pairs

    def prefill_seconds(self, prompt_tokens: int) -> float:
        """Time to the first token of a prompt, alone on the machine."""
        return self.iteration_seconds(0, prompt_tokens)

    @property
    def min_iteration_seconds(self) -> float:
        """The shortest iteration: one request decoding its first token. The paper's q1."""
        return self.iteration_seconds(1, 1)

    def alone_seconds(self, prompt_tokens: int, output_tokens: int) -> float:
        """A request's JCT on an idle machine: the denominator of slowdown."""
        decodes = output_tokens - 1
        context = decodes * prompt_tokens + decodes * (decodes + 1) // 2
        return (
            self.prefill_seconds(prompt_tokens)
            + decodes * (self.step + self.decode_request)
            + self.decode_context * context
        )

    def share_seconds(self, prompt_tokens: int, output_tokens: int, batch_size: int) -> float:
        """The machine's time that a request takes when every batch is full: 1 / its mean is the capacity."""
        alone = self.alone_seconds(prompt_tokens, output_tokens)
        return alone - self.step * output_tokens * (1.0 - 1.0 / batch_size)

    def remaining_share_seconds(
        self, start: int, pending: int, output_tokens: float, batch_size: int
    ) -> float:
        """As ``share_seconds``, for what is left: ``pending`` tokens behind ``start`` computed ones, and
        ``output_tokens`` to come."""
        prefill = self.iteration_seconds(start, pending) - self.step if pending > 1 else 0.0
        context = start + pending + output_tokens / 2
        per_token = self.step / batch_size + self.decode_request + self.decode_context * context
        return prefill + output_tokens * per_token

    def slowed(self, factor: float) -> CostModel:
        """Of a machine on which every step takes ``factor`` times as long; copies take as long as before."""
        steps = {f.name: getattr(self, f.name) * factor for f in fields(self)}
        return CostModel(**{**steps, "copy_bytes_per_second": self.copy_bytes_per_second})

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, float]) -> CostModel:
        """Raises ValueError for unknown or missing keys and for values out of range."""
        known = {f.name for f in fields(cls)}
        if unknown := set(data) - known:
            raise ValueError(f"cost model: unknown keys {sorted(unknown)}")
        if "step" not in data:
            raise ValueError("cost model: the key 'step' is missing")
        return cls(**{key: float(value) for key, value in data.items()})
