"""A workload as a value: what is asked, how much of it, and when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fgbench.workload.arrivals import POISSON, Arrivals

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RequestSpec:
    index: int
    scheduled: float
    """Seconds after the start of the load."""
    prompt: Prompt
    """Text, or token ids; no ids at all: not made, for a simulation that needs only lengths."""
    prompt_tokens: int
    output_tokens: int
    """Asked for with ignore_eos, so that every server does the same work."""
    user: str = ""
    """On whose behalf; empty: nobody's in particular, and none is sent."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The measured requests in order of arrival, and warm-up requests, which share no prompt with them."""

    dataset: str
    rate: float
    """Requests per second; ``inf``: all at once, or a closed loop, which has no rate of its own."""
    seed: int
    requests: tuple[RequestSpec, ...]
    warmup: tuple[RequestSpec, ...] = ()
    arrivals: Arrivals = POISSON
    users: int = 1
    """Between whom the requests are shared out; 1: nobody in particular."""

    @property
    def num_prompts(self) -> int:
        return len(self.requests)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every prompt, length, user and arrival (to the microsecond): of what is sent. Of
        arrivals other than Poisson's also over the process and its parameters: a closed loop has no times."""
        process = [] if self.arrivals == POISSON else [f"arrivals {self.arrivals.label}"]
        sent = (f"{round(r.scheduled * 1e6)}|{_request_key(r)}" for r in self.requests)
        return _digest([*process, *sent])

    @property
    def prompts_fingerprint(self) -> str:
        """The same without the arrivals: equal at every rate of one dataset and seed."""
        return _digest(_request_key(r) for r in self.requests)

    def describe(self) -> dict[str, Any]:
        """The ``workload`` part of run.json. An infinite rate is written ``"inf"``."""
        return {
            "dataset": self.dataset,
            "num_prompts": self.num_prompts,
            "rate": self.rate if self.rate != float("inf") else "inf",
            "seed": self.seed,
            "arrivals": self.arrivals.label,
            "arrival_process": {"name": self.arrivals.name, **self.arrivals.parameters},
            "users": self.users,
            "fingerprint": self.fingerprint,
            "prompts_fingerprint": self.prompts_fingerprint,
            "prompt_tokens": sum(r.prompt_tokens for r in self.requests),
            "output_tokens": sum(r.output_tokens for r in self.requests),
        }


def _request_key(request: RequestSpec) -> str:
    prompt = request.prompt
    if isinstance(prompt, str):
        shown = f"text {prompt}"
    else:
        shown = "ids " + ",".join(map(str, prompt)) if prompt else f"length {request.prompt_tokens}"
    user = f"user {request.user}|" if request.user else ""
    return f"{request.output_tokens}|{user}{shown}"


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        piece = part.encode("utf-8", "surrogatepass")
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
