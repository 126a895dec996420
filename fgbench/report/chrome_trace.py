"""The requests of a run as a trace for Perfetto or chrome://tracing. Pure.

Each request is a row with two spans: it waits for its first token, and it is being answered, or it fails.
What the server reports about it (seconds in each state, preemptions, bytes moved) is in the arguments of the
second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fgbench.metrics.latency import jct, ttft
from fgbench.metrics.record import RequestRecord
from fgbench.results.run import Run

PROCESS = 1


def chrome_trace(run: Run) -> dict[str, Any]:
    """Return the trace as plain JSON; times are microseconds since the first request was due.

    json.dump(chrome_trace(read_run("results/RUN")), file)
    """
    backend, workload = run.info.get("backend") or {}, run.info.get("workload") or {}
    name = f"{backend.get('name')}, {workload.get('rate')}/s, seed {workload.get('seed')}"
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": PROCESS, "tid": 0, "args": {"name": name}}
    ]
    for record in sorted(run.records, key=lambda record: record.index):
        events += _events(record)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(record: RequestRecord) -> Iterator[dict[str, Any]]:
    row = record.index + 1
    title = f"request {record.index}: {record.prompt_tokens} + {record.output_tokens} tokens"
    yield {"ph": "M", "name": "thread_name", "pid": PROCESS, "tid": row, "args": {"name": title}}
    yield {
        "ph": "M",
        "name": "thread_sort_index",
        "pid": PROCESS,
        "tid": row,
        "args": {"sort_index": record.index},
    }
    failed = record.error or record.rejected
    start = record.scheduled
    if record.first_token is not None:
        yield _span("waits", row, start, record.first_token, {"ttft_s": ttft(record)})
        start = record.first_token
    if failed is not None and record.finished is not None:
        yield _span("failed", row, start, record.finished, {"error": failed, "user": record.user})
    elif record.first_token is not None and record.last_token is not None:
        about = {"jct_s": jct(record), "user": record.user, **(record.server or {})}
        yield _span("is answered", row, start, record.last_token, about)


def _span(name: str, row: int, start: float, end: float, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "pid": PROCESS,
        "tid": row,
        "ts": round(start * 1e6),
        "dur": max(0, round((end - start) * 1e6)),
        "args": {key: value for key, value in arguments.items() if value not in (None, "")},
    }
