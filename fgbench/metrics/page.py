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
EDGE_CASES: tuple[tuple[str, str], ...] = (
    (
        "an answer of one token",
        "JCT = TTFT = JCT / token. It has no TPOT and no ITL, and meets every SLO on them.",
    ),
    (
        "an answer without tokens (`--natural-lengths`)",
        "It counts as answered in full, with an output length of 0 and no latency. It misses every SLO.",
    ),
    (
        "several tokens in one piece, or pieces that arrived in one moment",
        "TTFT is the arrival of the first piece. ITL has one gap for each pair of pieces. TPOT "
        "counts only the tokens after the first moment. With more than 1.5 tokens at a time on "
        "average, the run is marked ▤.",
    ),
    (
        "a piece without text",
        "It counts as a token, because it may be a part of a character. If the server counts fewer "
        "tokens than there are pieces, pieces without text at the beginning and at the end do not "
        "count: a first message with only a role, or a closing one.",
    ),
    (
        "an answer without usage",
        "If it ended at its length, it has the requested number of tokens. Otherwise, with "
        "`--natural-lengths`, the tokenizer of `--tokenizer` or `--model` counts them. Without these, "
        "the request failed.",
    ),
    (
        "fewer or more tokens than requested",
        "The request failed (`short`, `long`), unless the model ended it (`--natural-lengths`).",
    ),
    (
        "failed (error, timeout, broken stream)",
        "It is counted, has no latency, and misses every SLO.",
    ),
    (
        "rejected (429, or dropped from the queue)",
        "The same, but it is no error. Its requested tokens count as due when overload is judged.",
    ),
    (
        "in flight when the run is interrupted or the server dies",
        "It is not recorded, and the run is marked ◌.",
    ),
    (
        "left out by `--trim`",
        "It is recorded, and counts only when overload is judged.",
    ),
    (
        "a later turn of a conversation",
        "It is scheduled when the answer before it has ended and the think time is over.",
    ),
    (
        "held back by `--max-concurrency`",
        "The wait counts as latency, because the request was due.",
    ),
)
"""Special cases of requests, and how they count."""
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
    parts.append("## Special cases\n\n| case | how it counts |\n|---|---|")
    parts += [f"| {case} | {what} |" for case, what in EDGE_CASES]
    parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
