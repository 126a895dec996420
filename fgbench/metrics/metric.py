"""The table of metrics: one row for each figure of a request or of a run. Pure.

``METRICS`` defines the summary of a run, SLOs, the live panel, tables, comparisons, CSV, JSON, the columns of
``results sql`` and docs/metrics.md. To add a metric, add a row.

    metric = metric_called("ttft")
    metric.label, metric.unit              # "TTFT", "s"
    metric.of_request(record)              # (0.231,) in seconds; () if the record has no first token
    metric.figure(entry, "p99")            # the p99 over a run
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from fgbench.metrics import latency
from fgbench.metrics.record import STATES, RequestRecord
from fgbench.metrics.statistics import Distribution

if TYPE_CHECKING:
    from fgbench.metrics.accounts import Breakdown, MemoryAccount
    from fgbench.metrics.summary import Summary

Unit = Literal["s", "s/token", "1/s", "tokens/s", "bytes", "share", "count"]
"""``share``: between 0 and 1. ``count``: a plain number."""
Section = Literal["latency", "client", "throughput", "outcome", "fairness", "server"]
"""The group of a metric in tables."""
COMPARED = ("mean", "p50", "p95", "p99")
PLAIN = (None,)
"""Value of ``Metric.compared`` for a metric that is one number per run, without statistics."""


class RunFigures(Protocol):
    """The data of a run that metrics read, besides its requests."""

    @property
    def summary(self) -> Summary: ...

    @property
    def breakdown(self) -> Breakdown | None:
        """None if the server does not report where its requests spent their time."""
        ...

    @property
    def memory(self) -> MemoryAccount | None:
        """None if the server does not report its KV memory."""
        ...

    @property
    def slowdown(self) -> Distribution | None:
        """None if there is no cost model of the model, or no request was answered."""
        ...

    @property
    def fairness(self) -> float | None:
        """None if ``slowdown`` is None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table. Exactly one of ``of_request`` and ``of_run`` is set."""

    key: str
    """Name in run.json, JSON, CSV, SQL and SLOs."""
    label: str
    """Name on screens and in pictures."""
    unit: Unit
    better: Literal["lower", "higher"] | None
    """Which values are better. None: neither, so the metric gets no ratio, no verdict and no SLO."""
    section: Section
    definition: str
    """One or two sentences for docs/metrics.md."""
    of_request: Callable[[RequestRecord], Sequence[float]] | None = None
    """Returns the values of a request: usually one, none if the record lacks the times."""
    of_run: Callable[[RunFigures], float | Distribution | None] | None = None
    """Returns the figure of a run."""
    compared: tuple[str | None, ...] = ()
    """Statistics that ``compare`` shows; if empty, it does not show the metric."""
    every_request: bool = False
    """Also covers failed and rejected requests; otherwise only requests answered in full."""
    live: bool = False
    """Shown while a load runs. ``of_request`` must then take the same short time for every request."""
    several_per_request: bool = False
    """A request has several values, so the metric has no column in ``fgbench.load_runs``."""
    needs_two_tokens: bool = False
    """A time between tokens. An answer of one token has none, so it meets every bound."""
    aliases: tuple[str, ...] = ()
    """Other names that an SLO may use."""

    @property
    def can_be_bounded(self) -> bool:
        """Whether an SLO may set a limit for it."""
        return self.of_request is not None and self.better == "lower"

    def figure(self, run: RunFigures, statistic: str | None = None) -> float | None:
        """Return one number for a run, or None if the run has no such figure.

        ``statistic`` selects a statistic of a distribution; None selects the mean.
        """
        if self.of_run is None:
            return run.summary.figure(self.key, statistic or "mean")
        value = self.of_run(run)
        if isinstance(value, Distribution):
            return float(getattr(value, statistic or "mean"))
        return None if value is None else float(value)


def _one(of: Callable[[RequestRecord], float | None]) -> Callable[[RequestRecord], Sequence[float]]:
    def values(record: RequestRecord) -> Sequence[float]:
        value = of(record)
        return () if value is None else (value,)

    return values


def _from_sent(
    of: Callable[[RequestRecord, latency.Since], float | None],
) -> Callable[[RequestRecord], Sequence[float]]:
    return _one(lambda record: of(record, "sent"))


def _in_state(state: str) -> Callable[[RunFigures], float | None]:
    """Return a function that reads a request's mean seconds in one of the server's states."""
    return lambda run: run.breakdown.seconds.get(state) if run.breakdown else None


def _accounted(name: str) -> Callable[[RunFigures], float | None]:
    return lambda run: getattr(run.breakdown, name, None)


def _swapped_share(record: RequestRecord) -> Sequence[float]:
    seconds = {state: (record.server or {}).get(state, 0.0) for state in STATES}
    total = sum(seconds.values())
    return (seconds["swapped"] / total,) if total > 0.0 else ()


def _of_memory(name: str) -> Callable[[RunFigures], float | None]:
    return lambda run: getattr(run.memory, name, None)


METRICS: tuple[Metric, ...] = (
    Metric(
        key="normalized_latency",
        label="JCT / token",
        unit="s/token",
        better="lower",
        section="latency",
        definition="JCT divided by the number of output tokens. It is the y axis of FastServe's figures.",
        of_request=_one(latency.normalized_latency),
        compared=COMPARED,
        live=True,
        aliases=("normalised_latency", "latency_per_token", "jct_per_token", "jct_token", "nl"),
    ),
    Metric(
        key="jct",
        label="JCT",
        unit="s",
        better="lower",
        section="latency",
        definition="Job completion time: from the moment the arrival process schedules the request to its "
        "last token.",
        of_request=_one(latency.jct),
        compared=COMPARED,
        live=True,
        aliases=(
            *("job_completion_time", "latency", "e2e", "e2el", "e2e_latency", "end_to_end_latency"),
            "request_latency",
        ),
    ),
    Metric(
        key="ttft",
        label="TTFT",
        unit="s",
        better="lower",
        section="latency",
        definition="Time to first token: from the moment the arrival process schedules the request.",
        of_request=_one(latency.ttft),
        compared=COMPARED,
        live=True,
        aliases=("time_to_first_token",),
    ),
    Metric(
        key="tpot",
        label="TPOT",
        unit="s/token",
        better="lower",
        section="latency",
        definition="Time per output token after the first: (last token - first token) / (output tokens - 1). "
        "Answers of one token have none, and neither have answers that arrived in one moment. If several "
        "tokens arrived with the first, only those after them count.",
        of_request=_one(latency.tpot),
        compared=COMPARED,
        live=True,
        needs_two_tokens=True,
        aliases=("time_per_output_token",),
    ),
    Metric(
        key="itl",
        label="ITL",
        unit="s",
        better="lower",
        section="latency",
        definition="Inter-token latency: the gaps between two streamed pieces of an answer, of all requests "
        "together. FastGen streams one token per piece.",
        of_request=latency.itl,
        compared=COMPARED,
        several_per_request=True,
        needs_two_tokens=True,
        aliases=("inter_token_latency",),
    ),
    Metric(
        key="output_length",
        label="output tokens",
        unit="count",
        better=None,
        section="outcome",
        definition="Output tokens of an answer. Without --natural-lengths, it is the requested number.",
        of_request=lambda record: (float(record.output_tokens),),
        compared=("mean",),
    ),
    Metric(
        key="lag",
        label="client's lag",
        unit="s",
        better=None,
        section="client",
        definition="How late the client sent the request: sent - scheduled. Includes failed and rejected "
        "requests.",
        of_request=_one(latency.lag),
        every_request=True,
    ),
    Metric(
        key="ttft_from_sent",
        label="TTFT from sent",
        unit="s",
        better=None,
        section="client",
        definition="TTFT counted from the moment the client sent the request.",
        of_request=_from_sent(latency.ttft),
    ),
    Metric(
        key="jct_from_sent",
        label="JCT from sent",
        unit="s",
        better=None,
        section="client",
        definition="JCT counted from the moment the client sent the request.",
        of_request=_from_sent(latency.jct),
    ),
    Metric(
        key="normalized_latency_from_sent",
        label="JCT / token from sent",
        unit="s/token",
        better=None,
        section="client",
        definition="JCT / token counted from the moment the client sent the request.",
        of_request=_from_sent(latency.normalized_latency),
    ),
    Metric(
        key="request_throughput",
        label="requests / s",
        unit="1/s",
        better="higher",
        section="throughput",
        definition="Requests answered in full per second, between the first scheduled request and the end of "
        "the last answer.",
        of_run=lambda run: run.summary.request_throughput,
        compared=PLAIN,
    ),
    Metric(
        key="window_throughput",
        label="requests / s in window",
        unit="1/s",
        better="higher",
        section="throughput",
        definition="Requests answered in full per second, between the first and the last scheduled request. "
        "The last answers, which come after it, do not count. Above capacity, this is the capacity.",
        of_run=lambda run: run.summary.window_throughput,
        compared=PLAIN,
    ),
    Metric(
        key="output_token_throughput",
        label="output tokens / s",
        unit="tokens/s",
        better="higher",
        section="throughput",
        definition="Output tokens of the requests answered in full, per second of the same time.",
        of_run=lambda run: run.summary.output_token_throughput,
        compared=PLAIN,
    ),
    Metric(
        key="rejected_share",
        label="rejected",
        unit="share",
        better=None,
        section="outcome",
        definition="Share of the requests that the server rejected because its queue was full, or because "
        "they waited too long. They have no latency.",
        of_run=lambda run: run.summary.rejected_share,
        compared=PLAIN,
    ),
    Metric(
        key="slowdown",
        label="slowdown",
        unit="count",
        better="lower",
        section="fairness",
        definition="JCT divided by the time that the request would take alone on an idle machine. The "
        "profile's cost model estimates that time.",
        of_run=lambda run: run.slowdown,
        compared=("mean", "p99"),
    ),
    Metric(
        key="fairness",
        label="fairness (Jain)",
        unit="count",
        better="higher",
        section="fairness",
        definition="Jain's index of the slowdowns, (sum x)^2 / (n sum x^2): 1 if all are equal, 1/n if one "
        "request has all the slowdown.",
        of_run=lambda run: run.fairness,
        compared=PLAIN,
    ),
    Metric(
        key="queued",
        label="queued",
        unit="s",
        better=None,
        section="server",
        definition="Mean time that a request waits in the server to be selected: before it first runs, and "
        "after a preemption.",
        of_run=_in_state("queued"),
        compared=PLAIN,
    ),
    Metric(
        key="swapped",
        label="waiting for copies",
        unit="s",
        better=None,
        section="server",
        definition="Mean time in which a request is selected to run, but its KV is on the host or in "
        "transfer.",
        of_run=_in_state("swapped"),
        compared=PLAIN,
    ),
    Metric(
        key="prefill",
        label="prefill",
        unit="s",
        better=None,
        section="server",
        definition="Mean time of a request in prefill, including recomputation of evicted KV.",
        of_run=_in_state("prefill"),
        compared=PLAIN,
    ),
    Metric(
        key="decode",
        label="decode",
        unit="s",
        better=None,
        section="server",
        definition="Mean time of a request in decode.",
        of_run=_in_state("decode"),
        compared=PLAIN,
    ),
    Metric(
        key="preemptions",
        label="preemptions",
        unit="count",
        better=None,
        section="server",
        definition="Mean number of times a request was preempted.",
        of_run=_accounted("preemptions"),
        compared=PLAIN,
    ),
    Metric(
        key="bytes_moved",
        label="KV moved",
        unit="bytes",
        better=None,
        section="server",
        definition="Mean bytes of a request's KV that were copied between device and host.",
        of_run=_accounted("bytes_moved"),
        compared=PLAIN,
    ),
    Metric(
        key="swapped_share",
        label="waiting for copies / JCT",
        unit="share",
        better=None,
        section="server",
        definition="`swapped` divided by the total time of the requests in the server.",
        of_run=_accounted("swapped_share"),
        compared=PLAIN,
    ),
    Metric(
        key="time_swapped_share",
        label="time waiting for copies",
        unit="share",
        better=None,
        section="server",
        definition="Share of a request's time in the server in which it is selected to run, but its KV is on "
        "the host or in transfer. One value per request; `swapped_share` is one value for all of them.",
        of_request=_swapped_share,
        compared=("mean", "p99"),
    ),
    Metric(
        key="copy_wait_share",
        label="device idle for copies",
        unit="share",
        better=None,
        section="server",
        definition="Share of the time in which the device was idle because every request waited for a copy "
        "of its KV.",
        of_run=_of_memory("copy_wait_share"),
        compared=PLAIN,
    ),
    Metric(
        key="pressure_seconds",
        label="under pressure",
        unit="s",
        better=None,
        section="server",
        definition="Time in which KV memory was nearly full. Then no new request starts, and the started "
        "ones finish in order of arrival.",
        of_run=_of_memory("pressure_seconds"),
        compared=PLAIN,
    ),
)
OF_REQUESTS: dict[str, Callable[[RequestRecord], Sequence[float]]] = {
    metric.key: metric.of_request for metric in METRICS if metric.of_request is not None
}
"""By key: the metrics of requests. A run has a distribution of each."""
_BY_KEY = {metric.key: metric for metric in METRICS}


def metric_called(key: str) -> Metric:
    """Return the metric with this key; raises KeyError if there is none."""
    return _BY_KEY[key]


def distributions(
    records: Sequence[RequestRecord], answered: Sequence[RequestRecord]
) -> dict[str, Distribution]:
    """Return the distribution of every metric of requests, by key; metrics without a value are left out.

    ``answered``: the records of ``records`` that were answered in full.
    """
    found: dict[str, Distribution] = {}
    for key, values in OF_REQUESTS.items():
        counted = records if _BY_KEY[key].every_request else answered
        distribution = Distribution.of(value for record in counted for value in values(record))
        if distribution is not None:
            found[key] = distribution
    return found
