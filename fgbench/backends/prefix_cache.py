"""Resets the prefix cache of a vLLM or SGLang server, and reads its hit counters from /metrics."""

from __future__ import annotations

from dataclasses import dataclass

from fgbench.backends.probe import ask, metric_samples

ROUTES = {"vllm": "/reset_prefix_cache", "sglang": "/flush_cache"}
"""Name of a server -> route that resets its cache. vLLM has it only with VLLM_SERVER_DEV_MODE=1."""
OURS = "fgengine_"
"""Beginning of the names that only our server has in /metrics."""
COUNTERS: dict[str, tuple[str, ...]] = {
    "hits": (
        *("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
        "sglang:cached_tokens_total",
    ),
    "looked_up": (
        *("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
        "sglang:prompt_tokens_total",
    ),
    "preemptions": ("vllm:num_preemptions_total", "sglang:num_retracted_requests_total"),
}
"""Counter -> its names in /metrics: vLLM's, an older vLLM's, SGLang's. A server has at most one of them."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The result of asking a server to reset its cache."""

    done: bool
    answer: str = ""
    """What was asked and answered; empty: nothing was asked, because no route is known."""


def reset_cache(url: str, owner: str) -> Reset:
    """Ask the server to reset its prefix cache, if it is a server that may have a route for this.

    Args:
        url: URL of the server.
        owner: Owner of the model in /v1/models, which is the name of the server; otherwise its /metrics
            show what it is.
    """
    name = owner if owner in ROUTES else _name_in_metrics(url)
    if name is None:
        return Reset(False)
    route = ROUTES[name]
    status, body = ask(f"{url}{route}", "POST")
    done = status == 200 and not (isinstance(body, dict) and body.get("success") is False)
    answer = "no answer" if status is None else str(status) if done or status != 200 else "refused"
    return Reset(done, f"POST {route}: {answer}")


def cache_counters(url: str) -> dict[str, float] | None:
    """Return ``hits``, ``looked_up`` and ``preemptions`` since the server's start, from /metrics.

    Returns None if the server does not report hits and lookups.
    """
    status, body = ask(f"{url}/metrics")
    if status != 200 or not isinstance(body, str):
        return None
    samples = metric_samples(body)
    found = {}
    for counter, names in COUNTERS.items():
        values = [value for name, _, value in samples if name in names]
        if values:
            found[counter] = sum(values)
    if "looked_up" not in found or "hits" not in found:
        return None
    return {"preemptions": 0.0, **found}


def _name_in_metrics(url: str) -> str | None:
    status, body = ask(f"{url}/metrics")
    if status != 200 or not isinstance(body, str):
        return None
    names = {name for name, _, _ in metric_samples(body)}
    if any(name.startswith(OURS) for name in names):  # it has vLLM's names too, but no such cache
        return None
    prefixes = {name.partition(":")[0] for name in names}
    return next((name for name in ROUTES if name in prefixes), None)
