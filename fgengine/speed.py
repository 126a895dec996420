"""A rough estimate of a machine's speed, from which the default limits of the queue are computed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fgengine.cost import CostModel, StepShape

TYPICAL_PROMPT = 256
"""Prompt tokens of a typical request; used for limits that are set before the first request."""
TYPICAL_OUTPUT = 256
"""Output tokens of a typical request."""
TYPICAL_CONTEXT = TYPICAL_PROMPT + TYPICAL_OUTPUT // 2
"""Tokens that a typical decode attends to."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of one machine with one model."""

    prompt_tokens_per_second: float
    """Prefill speed with prompts of ``TYPICAL_PROMPT`` tokens, one after another."""
    output_tokens_per_second: float
    """Decode speed of a full batch."""

    @classmethod
    def of(cls, cost: CostModel, max_batch_size: int) -> Speed:
        """Return the speed that the cost model predicts."""
        decodes = StepShape(decode_requests=max_batch_size, decode_context=max_batch_size * TYPICAL_CONTEXT)
        return cls(
            TYPICAL_PROMPT / cost.prefill_seconds(TYPICAL_PROMPT),
            max_batch_size / cost.step_seconds(decodes),
        )

    @property
    def seconds_per_request(self) -> float:
        """Machine time of a typical request if every batch is full, seconds."""
        prefill = TYPICAL_PROMPT / self.prompt_tokens_per_second
        return prefill + TYPICAL_OUTPUT / self.output_tokens_per_second
