"""A request: its sampling parameters and its progress in the engine. Pure: no torch, no wall clock."""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field
from typing import Literal

from fgengine.adjustment import Adjustment
from fgengine.grammar import Grammar
from fgengine.invalid_param import InvalidParam
from fgengine.prompt_logprobs import PromptLogprobs, TopTokens

MAX_TOP = 20
"""Maximum number of most probable tokens that are reported at a position."""
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 10.0
MAX_BIAS = 100.0
MAX_BIASES = 1024
"""Maximum number of tokens with a bias."""

FinishReason = Literal["length", "stop", "abort", "error", "timeout"]
"""Why a request ended.

length: it has ``max_tokens`` output tokens. stop: it generated EOS or a stop token. abort: the client or the
server stopped it. error: a simulated engine refused it, or its grammar exceeded a limit during a step.
timeout: it waited for its start longer than the queue's timeout.
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

    Raises InvalidParam, a ValueError, if a value is out of range; the message names the field and the range.
    """

    max_tokens: int = 16
    """Maximum number of output tokens, at least 1."""
    temperature: float = 1.0
    """0 to 10; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling: the most probable tokens with this total probability are kept; above 0, at most 1."""
    top_k: int = 0
    """The number of most probable tokens that are kept; 0 keeps the complete vocabulary."""
    min_p: float = 0.0
    """Tokens with less than this share of the most probable token's probability are left out, 0 to 1. It
    applies after the temperature, and before top_k and top_p, as in vLLM."""
    min_tokens: int = 0
    """EOS and ``stop_token_ids`` cannot be chosen before this number of output tokens; at most
    ``max_tokens``."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that were generated, -2 to 2."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit each time it was generated, -2 to 2."""
    repetition_penalty: float = 1.0
    """Positive logits of the prompt's and generated tokens are divided by it, negative ones multiplied; above
    0, at most 10. It applies before the other penalties."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each with a number from -100 to 100 that is added to its logit before the penalties."""
    seed: int | None = None
    """Random seed, -2^63 to 2^63 - 1. The same seed, prompt and parameters give the same tokens, independent
    of other requests. None: the seed depends on the request's id."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the request, in addition to EOS."""
    ignore_eos: bool = False
    """Whether EOS does not end the request."""
    logprobs: bool = False
    """Whether to report each chosen token's log probability: natural, of the model's own logits, before
    temperature, penalties and biases, as vLLM does."""
    top_logprobs: int = 0
    """The number of most probable tokens to report at each output position, with their log probabilities, 0
    to 20. Needs ``logprobs``."""
    prompt_logprobs: int | None = None
    """None: off. 0 to 20: report the log probability of each prompt token given those before it, and this
    number of most probable tokens at its position."""
    grammar: Grammar | None = None
    """What the output must be. EOS ends the request as soon as nothing else may follow; ``max_tokens`` may
    end it before that. Not together with ``min_tokens`` or ``ignore_eos``."""
    no_output: bool = False
    """Whether only the prompt is of interest, for its log probabilities. Then ``max_tokens`` must be 1. This
    token needs no KV and no place in the model's context, so a prompt may fill the context."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidParam("max_tokens", f"must be at least 1, not {self.max_tokens}")
        if self.no_output and self.max_tokens != 1:
            raise InvalidParam("max_tokens", f"must be 1 with no_output, not {self.max_tokens}")
        if not 0.0 <= self.temperature <= 10.0:
            raise InvalidParam("temperature", f"must be between 0 and 10, not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidParam("top_p", f"must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise InvalidParam("top_k", f"must be 0 (off) or more, not {self.top_k}")
        if not 0.0 <= self.min_p <= 1.0:
            raise InvalidParam("min_p", f"must be between 0 and 1, not {self.min_p}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InvalidParam(
                "min_tokens",
                f"must be between 0 and max_tokens {self.max_tokens}, not {self.min_tokens}",
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -MAX_PENALTY <= getattr(self, name) <= MAX_PENALTY:
                raise InvalidParam(name, f"must be between -2 and 2, not {getattr(self, name)}")
        if not 0.0 < self.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise InvalidParam(
                "repetition_penalty",
                f"must be above 0 and at most 10, not {self.repetition_penalty}",
            )
        self._check_biases()
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise InvalidParam("seed", f"must be between -2^63 and 2^63 - 1, not {self.seed}")
        if not 0 <= self.top_logprobs <= MAX_TOP:
            raise InvalidParam("top_logprobs", f"must be between 0 and {MAX_TOP}, not {self.top_logprobs}")
        if self.top_logprobs and not self.logprobs:
            raise InvalidParam("top_logprobs", "needs logprobs: set logprobs to True")
        if self.prompt_logprobs is not None and not 0 <= self.prompt_logprobs <= MAX_TOP:
            raise InvalidParam(
                "prompt_logprobs", f"must be between 0 and {MAX_TOP}, not {self.prompt_logprobs}"
            )
        if self.grammar is not None:
            for name in ("ignore_eos", "min_tokens"):
                if getattr(self, name):
                    raise InvalidParam(
                        name,
                        f"contradicts {self.grammar.field}, with which the answer ends where it is "
                        f"complete: leave {name} out",
                    )

    def _check_biases(self) -> None:
        if not self.logit_bias:
            return
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidParam("logit_bias", f"has {len(self.logit_bias)} tokens: give at most {MAX_BIASES}")
        for token, bias in self.logit_bias:
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise InvalidParam(
                    "logit_bias", f"must be between -100 and 100, not {bias} (of token {token})"
                )
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise InvalidParam("logit_bias", "has a token twice: give each token one bias")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always chosen."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the logits."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def changes_every_token(self) -> bool:
        """Whether logits change before each token is sampled. ``min_tokens`` changes those of the first."""
        if self.min_p > 0.0 or self.has_penalties or self.logit_bias:
            return True
        return self.grammar is not None

    @property
    def needs_logits(self) -> str | None:
        """A field whose effect depends on the model's logits, so that no filler could show it; or None."""
        wanted = {
            "logit_bias": self.logit_bias,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty != 1.0,
            "top_logprobs": self.top_logprobs,
            "prompt_logprobs": self.prompt_logprobs is not None,
        }
        if self.grammar is not None:
            wanted[self.grammar.field] = True
        return next((name for name, value in wanted.items() if value), None)


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
    top_logprobs: list[TopTokens] = field(default_factory=list)
    """The most probable tokens at each output position, if requested."""
    prompt_logprobs: PromptLogprobs | None = None
    """Log probabilities of the prompt's tokens as far as they are computed; None: not requested."""
    adjustment: Adjustment | None = None
    """How the logits change before sampling; None: not at all."""
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

    def __post_init__(self) -> None:
        params = self.params
        if params.changes_every_token or params.min_tokens:
            self.adjustment = Adjustment(params, self.prompt_len)
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = PromptLogprobs()

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
    def max_context(self) -> int:
        """Maximum number of tokens that have a place in the model's context."""
        return self.prompt_len if self.params.no_output else self.max_len

    @property
    def failure(self) -> str:
        """Why the request's grammar cannot be followed any more; usually empty."""
        matcher = None if self.adjustment is None else self.adjustment.matcher
        return "" if matcher is None else matcher.failure

    @property
    def finished(self) -> bool:
        """Whether the request has ended for any reason."""
        return self.finish_reason is not None
