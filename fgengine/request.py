"""What a client asks for and how far the engine has come with it. Pure: no torch, no wall clock."""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["length", "stop", "abort", "error", "timeout"]
"""timeout: it waited for its start for too long."""
Phase = Literal["queued", "swapped", "prefill", "decode"]
"""swapped: its turn has come, but its KV is on the host or on its way. One that waits for its turn is queued,
wherever its KV is, and in prefill or decode while it is in a batch."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when a request ends.

    Stop strings are not here: they are a matter of text, which the engine never sees. Whoever turns
    tokens into text (``fgengine.text``) watches for them and aborts the request.

    Raises:
        ValueError: for a value outside its range; the message names the field and the range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    seed: int | None = None
    """The same seed, prompt and parameters give the same tokens, whatever else runs. None: by request id."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    """Report the natural-log probability of each chosen token (before temperature, as OpenAI does)."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"temperature must be between 0 and 10, not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2^63 - 1, not {self.seed}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(slots=True, eq=False)
class Request:
    """One request inside the engine: tokens known, tokens computed, and where its time went.

    "Tokens catch up": a step computes the known tokens that are not computed yet. Prefill, a chunk of
    it, decode and recompute after eviction are the same thing with another number.
    """

    id: str
    prompt_len: int
    params: SamplingParams
    arrival: float
    """Seconds on the engine's clock."""
    tokens: MutableSequence[int]
    """Prompt, then generated tokens: all that is known."""
    user: str = ""
    """On whose behalf; fair policies share the machine among users."""
    num_computed: int = 0
    """Leading tokens whose keys and values exist (on the device, on the host or on the way)."""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    first_token_at: float | None = None
    last_ran_at: float | None = None
    preemptions: int = 0
    """Times it was left out of a batch after it had run in the one before."""
    bytes_moved: int = 0
    """KV bytes copied between device and host for it, both ways."""
    phase: Phase = "queued"
    phase_since: float = 0.0
    seconds: dict[Phase, float] = field(
        default_factory=lambda: {"queued": 0.0, "swapped": 0.0, "prefill": 0.0, "decode": 0.0}
    )
    """Seconds spent in each phase that has ended. Once finished they sum to the JCT on the engine's clock."""

    @classmethod
    def new(
        cls, id: str, prompt: list[int], params: SamplingParams, arrival: float, user: str = ""
    ) -> Request:
        if not prompt:
            raise ValueError("a prompt needs at least one token")
        return cls(
            id=id,
            prompt_len=len(prompt),
            params=params,
            arrival=arrival,
            tokens=list(prompt),
            user=user,
            phase_since=arrival,
        )

    def enter(self, phase: Phase, now: float) -> None:
        """Charge the time since the last change to the phase that ends here."""
        if phase != self.phase:
            self.seconds[self.phase] += now - self.phase_since
            self.phase = phase
            self.phase_since = now

    def finish(self, reason: FinishReason, now: float) -> None:
        self.seconds[self.phase] += now - self.phase_since
        self.phase_since = now
        self.finish_reason = reason

    def accounting(self) -> dict[str, float]:
        """Where its time went: seconds a phase; preemptions; KV bytes moved."""
        counts = {"preemptions": float(self.preemptions), "bytes_moved": float(self.bytes_moved)}
        return {**{str(phase): spent for phase, spent in self.seconds.items()}, **counts}

    @property
    def num_known(self) -> int:
        return len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Known tokens not computed yet: the work of its next step."""
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def max_len(self) -> int:
        """The most tokens it can ever hold KV for."""
        return self.prompt_len + self.params.max_tokens

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None
