"""Conditions of a server during a run: its prefix cache, the form of its prompts, usage, cores. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

import msgspec

MAX_HIT_SHARE = 0.01
"""Share of the prompt tokens found in a prefix cache above which a run is marked."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheAccount:
    """What is known about the server's prefix cache during the load: ``prefix_cache`` of run.json."""

    reset: bool
    """Whether the server reset its cache between the warm-up and the load."""
    reset_answer: str
    """What was asked and answered, such as ``POST /reset_prefix_cache: 404``; empty: nothing was asked."""
    counted_by: Literal["usage", "metrics"] | None
    """Where the hits come from: the usage of the answers, or /metrics; None: the server reports none."""
    hits: float
    """Tokens (older vLLM: blocks) that the server found in its cache during the load."""
    looked_up: float
    """Tokens (older vLLM: blocks) that the server looked up during the load."""
    hit_share: float | None
    """Share of the prompt tokens that were found; None: the server does not report it."""
    shared_share: float
    """Share of the prompts that begins like another prompt of the same load. It may be found in any case."""
    helped: bool
    """Whether the server found so much that was not part of this load that tables mark the run."""

    def describe(self) -> str:
        """Return one line for tables: how much was found, and whether the cache was reset before."""
        found = "does not report its hits"
        if self.hit_share is not None:
            found = f"{self.hit_share:.1%} of the prompt tokens found"
            found += f", {self.shared_share:.1%} expected" if self.shared_share > MAX_HIT_SHARE else ""
        if self.reset:
            return f"{found}; reset before the load"
        answer = f" ({self.reset_answer})" if self.reset_answer else ""
        return f"{found}; not reset before the load{answer}"

    def to_json(self) -> dict[str, Any]:
        """Return the value of ``prefix_cache`` in run.json."""
        return asdict(self)

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> CacheAccount | None:
        """Read ``prefix_cache`` of run.json; None for FastGen, a simulation, or an older run.

        Raises:
            ValueError: a figure has the wrong type.
        """
        return _read(cls, info.get("prefix_cache"))


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was sent, what the answers report about it, and the server's cores: ``conditions`` of run.json."""

    texts: int
    """Answers to prompts that were sent as text, not as token ids."""
    without_usage: int
    """Answers that do not report the tokens of their prompt."""
    miscounted: int
    """Answers that report another number of prompt tokens than was sent."""
    sent_tokens: int
    """Prompt tokens sent with the requests whose answers report theirs."""
    counted_tokens: int
    """Prompt tokens that these answers report."""
    cores: tuple[int, ...] | None
    """Cores that the server's process may use; None: not known."""

    def to_json(self) -> dict[str, Any]:
        """Return the value of ``conditions`` in run.json."""
        return asdict(self)

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Conditions | None:
        """Read ``conditions`` of run.json; None for a simulation or an older run.

        Raises:
            ValueError: a figure has the wrong type.
        """
        return _read(cls, info.get("conditions"))


def cache_account(
    *,
    reset: bool,
    reset_answer: str,
    prompt_tokens: int,
    shared_share: float,
    cached_tokens: int | None = None,
    counters: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
) -> CacheAccount:
    """Compute the account of a load from what the server reports.

    Args:
        reset, reset_answer, shared_share: As in ``CacheAccount``.
        prompt_tokens: Prompt tokens of the requests that were answered.
        cached_tokens: Cached tokens by the answers' usage; None: not reported. It wins over ``counters``.
        counters: ``hits``, ``looked_up`` and ``preemptions`` before and after the load; None: not reported.
    """
    if cached_tokens is not None:
        counted: Literal["usage", "metrics"] | None = "usage"
        hits, looked_up, preemptions = float(cached_tokens), float(prompt_tokens), 0.0
    elif counters is not None:
        before, after = counters
        counted = "metrics"
        hits, looked_up, preemptions = (
            max(0.0, after[name] - before.get(name, 0.0)) for name in ("hits", "looked_up", "preemptions")
        )
    else:
        counted, hits, looked_up, preemptions = None, 0.0, 0.0, 0.0
    share = None if counted is None else _hit_share(hits, looked_up, preemptions, prompt_tokens)
    return CacheAccount(
        reset=reset,
        reset_answer=reset_answer,
        counted_by=counted,
        hits=hits,
        looked_up=looked_up,
        hit_share=share,
        shared_share=shared_share,
        helped=share is not None and share - shared_share > MAX_HIT_SHARE,
    )


def _hit_share(hits: float, looked_up: float, preemptions: float, prompt_tokens: int) -> float:
    """Return the share of the prompt tokens that were found in the cache.

    A preempted request is looked up again, and finds its own blocks. In older vLLM that counts too, so hits
    of repeated lookups are subtracted: the result is then a lower limit.
    """
    if looked_up <= 0.0:
        return 0.0
    repeated = max(0.0, looked_up - prompt_tokens) if preemptions > 0.0 else 0.0
    return min(1.0, max(0.0, hits - repeated) / (looked_up - repeated))


def shared_share(prompts: Sequence[str | tuple[int, ...]]) -> float:
    """Return the share of the prompts that begins like another prompt of the same load, 0 to 1.

    In sorted order, each prompt shares most with its neighbour. So the sum of what neighbours share is what
    a cache without limits finds, in any order of the requests.
    """
    total = sum(map(len, prompts))
    shared = 0
    for kind in (str, tuple):
        ordered = sorted(prompt for prompt in prompts if isinstance(prompt, kind))
        shared += sum(map(_common, ordered, ordered[1:]))
    return shared / total if total else 0.0


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common beginning."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(i for i in range(shorter) if one[i] != other[i])


def _read(kind: type[T], data: Any) -> T | None:
    if not isinstance(data, dict) or any(f.name not in data for f in fields(kind)):  # type: ignore[arg-type]
        return None
    return msgspec.convert(data, kind)
