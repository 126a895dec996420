"""The figures that are compared: where each stands, how it is written, which way is better. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fgbench.report.units import number, percent, seconds, size

Kind = Literal["seconds", "number", "bytes", "share"]


@dataclass(frozen=True, slots=True)
class Quantity:
    metric: str
    statistic: str | None
    """None: a plain figure of a run, no distribution."""
    name: str
    kind: Kind
    better: Literal["lower", "higher"] | None
    """None: neither, so it gets no ratio and no verdict."""

    @property
    def lower_is_better(self) -> bool:
        return self.better == "lower"

    def show(self, value: float | None) -> str:
        if self.kind == "seconds":
            return seconds(value)
        if self.kind == "bytes":
            return "-" if value is None else size(value)
        if self.kind == "share":
            return percent(value)
        return number(value)


STATISTICS = ("mean", "p50", "p95", "p99")
LATENCY_NAMES = {"normalized_latency": "JCT / token", "jct": "JCT", "ttft": "TTFT", "tpot": "TPOT"}

LATENCIES = tuple(
    Quantity(metric, statistic, name, "seconds", "lower")
    for metric, name in LATENCY_NAMES.items()
    for statistic in STATISTICS
)
THROUGHPUTS = (
    Quantity("request_throughput", None, "requests / s", "number", "higher"),
    Quantity("output_token_throughput", None, "output tokens / s", "number", "higher"),
)
OUTCOMES = (Quantity("rejected_share", None, "rejected", "share", None),)
SLOWDOWNS = (
    Quantity("slowdown", "mean", "slowdown", "number", "lower"),
    Quantity("slowdown", "p99", "slowdown", "number", "lower"),
    Quantity("fairness", None, "fairness (Jain)", "number", "higher"),
)
IN_THE_SERVER = (
    Quantity("queued", None, "queued", "seconds", None),
    Quantity("swapped", None, "swapped out", "seconds", None),
    Quantity("prefill", None, "prefill", "seconds", None),
    Quantity("decode", None, "decode", "seconds", None),
    Quantity("preemptions", None, "preemptions", "number", None),
    Quantity("bytes_moved", None, "KV moved", "bytes", None),
    Quantity("swapped_share", None, "waiting for copies / JCT", "share", None),
    Quantity("copy_wait_share", None, "device idle for copies", "share", None),
    Quantity("pressure_seconds", None, "under pressure", "seconds", None),
)
QUANTITIES = (*LATENCIES, *THROUGHPUTS, *OUTCOMES, *SLOWDOWNS, *IN_THE_SERVER)
HEADLINES = tuple(quantity for quantity in LATENCIES if quantity.statistic == "mean") + THROUGHPUTS
"""Those with a verdict in the tables; files hold one for every quantity that has a better side."""
