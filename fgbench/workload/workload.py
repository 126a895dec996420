"""A workload: requests with their prompts, lengths and arrival times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fgbench.workload.arrivals import POISSON, Arrivals

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """A request to send."""

    index: int
    scheduled: float
    """Arrival time in seconds since the start of the load."""
    prompt: Prompt
    """Text or token ids; an empty tuple: not made, because a simulation needs only the length."""
    prompt_tokens: int
    output_tokens: int
    """Requested output tokens, forced by ignore_eos, so that every server does the same work."""
    user: str = ""
    """User of the request; empty: no user is sent."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The measured requests in order of arrival, and warm-up requests with other prompts."""

    dataset: str
    """Name of the dataset."""
    rate: float
    """Requests per second; ``inf``: all at once, or a closed loop, which has no rate."""
    seed: int
    requests: tuple[RequestSpec, ...]
    warmup: tuple[RequestSpec, ...] = ()
    arrivals: Arrivals = POISSON
    users: int = 1
    """Number of users that send the requests; 1: requests have no user."""

    @property
    def num_prompts(self) -> int:
        """Number of measured requests."""
        return len(self.requests)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every prompt, length, user and arrival time (in microseconds).

        For arrivals other than Poisson also over the process and its parameters, because a closed loop has no
        arrival times.
        """
        process = [] if self.arrivals == POISSON else [f"arrivals {self.arrivals.label}"]
        sent = (f"{round(r.scheduled * 1e6)}|{_request_key(r)}" for r in self.requests)
        return _digest([*process, *sent])

    @property
    def prompts_fingerprint(self) -> str:
        """SHA-256 like ``fingerprint``, without the arrivals: equal at all rates of a dataset and seed."""
        return _digest(_request_key(r) for r in self.requests)

    def describe(self) -> dict[str, Any]:
        """Return the ``workload`` part of run.json. An infinite rate is written as ``"inf"``."""
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
        content = f"text {prompt}"
    else:
        content = "ids " + ",".join(map(str, prompt)) if prompt else f"length {request.prompt_tokens}"
    user = f"user {request.user}|" if request.user else ""
    return f"{request.output_tokens}|{user}{content}"


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        piece = part.encode("utf-8", "surrogatepass")
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
