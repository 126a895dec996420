"""A request: its sampling parameters and its progress in the engine. Pure: no torch, no wall clock."""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["length", "stop", "abort", "error", "timeout"]
"""Why a request ended.

length: it has ``max_tokens`` output tokens. stop: it generated EOS or a stop token. abort: the client or the
server stopped it. error: a simulated engine refused it. timeout: it waited for its start longer than the
queue's timeout.
"""
Phase = Literal["queued", "swapped", "prefill", "decode"]
"""What a request is doing.

queued: it waits to be selected; its KV may be anywhere. swapped: it is selected, but its KV is on the host or
in transfer. prefill or decode: it is in a batch.
"""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and when a request ends.

        SamplingParams(max_tokens=100, temperature=0.0)     # greedy, at most 100 tokens

    Stop strings are not part of it, because the engine sees token ids only. The code that turns tokens into
    text (``fgengine.text``) looks for stop strings and aborts the request.

    Raises ValueError if a value is out of range; the message names the field and the range.
    """

    max_tokens: int = 16
    """Maximum number of output tokens, at least 1."""
    temperature: float = 1.0
    """0 to 10; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling: the most probable tokens with this total probability are kept; above 0, at most 1."""
    top_k: int = 0
    """The number of most probable tokens that are kept; 0 keeps the complete vocabulary."""
    seed: int | None = None
    """Random seed, 0 to 2^63 - 1. The same seed, prompt and parameters give the same tokens, independent of
    other requests. None: the seed depends on the request's id."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the request, in addition to EOS."""
    ignore_eos: bool = False
    """Whether EOS does not end the request."""
    logprobs: bool = False
    """Whether to report each chosen token's log probability (natural, before temperature, as OpenAI does)."""

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
        """Whether the most probable token is always chosen."""
        return self.temperature == 0.0


@dataclass(slots=True, eq=False)
class Request:
    """A request inside the engine: its tokens, its progress and its timing.

    A step computes known tokens that are not computed yet. Prefill, chunked prefill, decode and recompute
    after eviction all work this way; they differ only in the number of tokens. All times are seconds on the
    engine's clock. ``Engine.add`` creates requests; a test creates them with ``Request.new``.
    """

    id: str
    prompt_len: int
    """Tokens of the prompt."""
    params: SamplingParams
    arrival: float
    """When the request arrived."""
    tokens: MutableSequence[int]
    """All known tokens: the prompt, then the generated tokens."""
    user: str = ""
    """The user who sent the request; fair policies share the machine among users."""
    num_computed: int = 0
    """Leading tokens whose KV exists (on the device, on the host or in transfer)."""
    logprobs: list[float] = field(default_factory=list)
    """Log probability of each generated token, if requested."""
    finish_reason: FinishReason | None = None
    """Why the request ended; None while it is unfinished."""
    first_token_at: float | None = None
    """When the first output token was generated."""
    last_ran_at: float | None = None
    """When the last step with this request ended."""
    preemptions: int = 0
    """Number of times the request was left out of a batch after it had run in the batch before."""
    bytes_moved: int = 0
    """Bytes of its KV copied between device and host, in both directions."""
    phase: Phase = "queued"
    phase_since: float = 0.0
    """When the current phase began; once the request has ended, when it ended."""
    seconds: dict[Phase, float] = field(
        default_factory=lambda: {"queued": 0.0, "swapped": 0.0, "prefill": 0.0, "decode": 0.0}
    )
    """Seconds spent in each phase, without the current one. Once finished, their sum is the JCT on the
    engine's clock."""

    @classmethod
    def new(
        cls, id: str, prompt: list[int], params: SamplingParams, arrival: float, user: str = ""
    ) -> Request:
        """Create a request, as in ``Request.new("r1", [1, 2, 3], SamplingParams(max_tokens=8), 0.0)``.

        Args:
            prompt: token ids.
            arrival: seconds on the engine's clock.

        Raises ValueError if the prompt is empty.
        """
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
        """Enter a phase, and add the time since the last change to the phase that ends."""
        if phase != self.phase:
            self.seconds[self.phase] += now - self.phase_since
            self.phase = phase
            self.phase_since = now

    def finish(self, reason: FinishReason, now: float) -> None:
        """End the request, and add the time since the last change to its phase."""
        self.seconds[self.phase] += now - self.phase_since
        self.phase_since = now
        self.finish_reason = reason

    def accounting(self) -> dict[str, float]:
        """Return the seconds of each phase, the preemptions and the bytes of KV copied, by name."""
        counts = {"preemptions": float(self.preemptions), "bytes_moved": float(self.bytes_moved)}
        return {**{str(phase): spent for phase, spent in self.seconds.items()}, **counts}

    @property
    def num_known(self) -> int:
        """Number of prompt and generated tokens."""
        return len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Number of known tokens that are not computed yet: the work of the next step."""
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Number of output tokens so far."""
        return len(self.tokens) - self.prompt_len

    @property
    def max_len(self) -> int:
        """Maximum number of prompt and output tokens."""
        return self.prompt_len + self.params.max_tokens

    @property
    def finished(self) -> bool:
        """Whether the request has ended for any reason."""
        return self.finish_reason is not None
