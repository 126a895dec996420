"""What vLLM's /metrics say, in the words of our own /stats. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

SUMMED: Mapping[str, str] = {
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "num_requests_swapped": "swapped",
    "prompt_tokens_total": "prompt_tokens",
    "generation_tokens_total": "generated_tokens",
    "num_preemptions_total": "preemptions",
    "request_success_total": "finished",
}
"""Over engines and finish reasons."""
SHARES: Mapping[str, str] = {
    "kv_cache_usage_perc": "device_used_share",
    "gpu_cache_usage_perc": "device_used_share",
    "cpu_cache_usage_perc": "host_used_share",
}
"""0 to 1, whatever their names say; of several engines the fullest one's. The last two are older vLLM's."""
_SAMPLE = re.compile(r"^vllm:(?P<name>\w+)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_MODEL = re.compile(r'model_name="((?:[^"\\]|\\.)*)"')


def from_vllm(text: str) -> dict[str, Any]:
    """From Prometheus' text format. Empty where there is nothing of vLLM's in it."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        try:
            value = float(sample["value"])
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        name = sample["name"]
        if (key := SUMMED.get(name)) is not None:
            found[key] = found.get(key, 0.0) + value
        elif (key := SHARES.get(name)) is not None:
            found[key] = max(found.get(key, 0.0), value)
        if model := _MODEL.search(sample["labels"] or ""):
            found.setdefault("model", model[1])
    return found
