"""Run folders, written by the real ``RunWriter``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.metrics.trimming import Trim
from fgbench.results.writer import RunWriter

Write = Callable[..., Path]


def served(index: int, latency: float = 1.0, **more: Any) -> RequestRecord:
    """Return a request with two tokens: one after half of ``latency``, one at its end."""
    times = (index + latency / 2, index + latency)
    return RequestRecord(
        index, float(index), float(index), 8, 2, 2, times[0], times[1], times, finished=times[1], **more
    )


@pytest.fixture
def write_run() -> Write:
    def write(
        root: Path,
        backend: str,
        records: list[RequestRecord] | None = None,
        *,
        rate: float | str = 2.0,
        seed: int = 0,
        status: str = "complete",
        trim: dict[str, str] | None = None,
        **workload: Any,
    ) -> Path:
        """Write a run folder. With status ``running``, it looks like the folder of a killed run."""
        requests = [served(i) for i in range(4)] if records is None else records
        info = {
            "backend": {"name": backend, "policy": "x", "url": None, "settings": {"max_batch_size": 16}},
            "model": "no-such-model",
            "workload": {
                "dataset": "synthetic",
                "num_prompts": 4,
                "rate": rate,
                "seed": seed,
                "arrivals": "poisson",
                "prompts_fingerprint": f"prompts of {seed}",
                **workload,
            },
            "trim": trim,
            "environment": {},
            "fingerprint": f"{backend} {rate} {seed}",
        }
        writer = RunWriter(root, info)
        for record in requests:
            writer.append(record)
        if status == "running":
            writer._requests.close()
            writer._unlock()
        else:
            trimmed = Trim.parse(trim["start"], trim["end"]) if trim else Trim()
            summary = summarize(requests, offered_rate=None if rate == "inf" else float(rate), trim=trimmed)
            writer.finish(status, requests, summary.to_dict())
        return writer.path

    return write
