"""Generates docs/metrics.md from the table of metrics.

python -m fgbench.metrics.page > docs/metrics.md
"""

from __future__ import annotations

from fgbench.metrics.metric import METRICS, Section

INTRODUCTION = """# Metrics

This page is generated from the table in `fgbench/metrics/metric.py` (`make docs`). The key is the name of a
metric in run.json, `compare --json`, CSV, `fgbench.load_runs`, `fgbench.compare` and SLOs. In `results sql`
and `fgbench.runs`, a distribution has one column per statistic, such as `ttft_p99`.

The client measures all times, with one monotonic clock. A latency counts from the moment the arrival process
*schedules* the request. So if the client sends late, the delay counts as latency and is not hidden
(coordinated omission). Latencies cover the requests answered in full. Failed and rejected requests are
counted, and miss every SLO. Each metric of requests has a mean, minimum, p50, p90, p95, p99 and maximum.
Percentiles interpolate linearly between order statistics (Hyndman and Fan's type 7, numpy's default). The
number of output tokens is the server's count (`usage`), not the number of streamed pieces.
"""
SECTIONS: dict[Section, str] = {
    "latency": "Latencies of requests",
    "client": "The client",
    "throughput": "Throughput",
    "outcome": "Outcomes",
    "fairness": "Slowdown and fairness",
    "server": "In the server (reported by FastGen)",
}
UNITS = {
    "s": "seconds",
    "s/token": "seconds per output token",
    "1/s": "requests per second",
    "tokens/s": "tokens per second",
    "bytes": "bytes",
    "share": "share of 1",
    "count": "number",
}


def page() -> str:
    """Return the text of docs/metrics.md."""
    parts = [INTRODUCTION]
    for section, heading in SECTIONS.items():
        parts.append(f"## {heading}\n\n| key | on screens | unit | better | meaning |\n|---|---|---|---|---|")
        parts += [
            f"| `{metric.key}` | {metric.label} | {UNITS[metric.unit]} | {metric.better or '-'} | "
            f"{metric.definition} |"
            for metric in METRICS
            if metric.section == section
        ]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
