"""How much work a machine does in a second, roughly: the default bound of the queue follows from it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fgengine.cost import CostModel, StepShape

TYPICAL_PROMPT = 256
"""Tokens of a typical request's prompt, for bounds that are set before a request has come."""
TYPICAL_OUTPUT = 256
"""Tokens of a typical answer."""
TYPICAL_CONTEXT = TYPICAL_PROMPT + TYPICAL_OUTPUT // 2
"""Tokens that a typical decode attends to."""


@dataclass(frozen=True, slots=True)
class Speed:
    prompt_tokens_per_second: float
    """With prompts of ``TYPICAL_PROMPT`` tokens, one after another."""
    output_tokens_per_second: float
    """Of a full batch of decodes."""

    @classmethod
    def of(cls, cost: CostModel, max_batch_size: int) -> Speed:
        """As the cost model predicts."""
        decodes = StepShape(decode_requests=max_batch_size, decode_context=max_batch_size * TYPICAL_CONTEXT)
        return cls(
            TYPICAL_PROMPT / cost.prefill_seconds(TYPICAL_PROMPT),
            max_batch_size / cost.step_seconds(decodes),
        )

    @property
    def seconds_per_request(self) -> float:
        """The machine's time that a typical request takes when every batch is full."""
        prefill = TYPICAL_PROMPT / self.prompt_tokens_per_second
        return prefill + TYPICAL_OUTPUT / self.output_tokens_per_second
