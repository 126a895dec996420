"""docs/metrics.md, made from the table of metrics: ``python -m fgbench.metrics.page > docs/metrics.md``."""

from __future__ import annotations

from fgbench.metrics.metric import METRICS, Section

INTRODUCTION = """# Metrics

This page is made from the table in `fgbench/metrics/metric.py` (`make docs`). The key is the name of a
metric in run.json, `compare --json`, CSV, `fgbench.load_runs`, `fgbench.compare` and SLOs; in `results sql`
and `fgbench.runs` a distribution has a column for each statistic, such as `ttft_p99`.

All times are the client's, on one monotonic clock. A latency counts from the moment the arrival process
*schedules* the request, so that a late client is charged to the measurement instead of hidden (coordinated
omission). Latencies are of requests answered in full; failed and rejected ones are counted, and miss every
SLO. Each metric of requests has a mean, minimum, p50, p90, p95, p99 and maximum. Percentiles interpolate
linearly between order statistics (Hyndman and Fan's type 7, numpy's default). The number of output tokens
is the server's own count (`usage`), not the number of streamed pieces.
"""
SECTIONS: dict[Section, str] = {
    "latency": "Latencies of requests",
    "client": "The client",
    "throughput": "Throughput",
    "outcome": "Outcomes",
    "fairness": "Slowdown and fairness",
    "server": "In the server: FastGen's own account",
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
    """The text of docs/metrics.md."""
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
