"""The figures of one run, computed from its request records. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from fgbench.metrics.latency import moments
from fgbench.metrics.metric import OF_REQUESTS, distributions
from fgbench.metrics.overload import Judgement, judge, rejects_many
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import Distribution
from fgbench.metrics.trimming import WHOLE, Trim


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run, in seconds, tokens and requests per second.

    Latencies and throughput cover the requests answered in full. Failed requests are counted only in
    ``failed`` and ``errors``. Rejected requests are counted only in ``rejected``, ``rejections``,
    ``overloaded`` and ``shortfall``.
    """

    requests: int
    ok: int
    failed: int
    duration_s: float
    """Seconds from the first scheduled request to the end of the last response. If the run is trimmed, the
    length of ``window``."""
    prompt_tokens: int
    output_tokens: int
    request_throughput: float
    """Requests answered in full per second of ``duration_s``."""
    output_token_throughput: float
    total_token_throughput: float
    """Prompt and output tokens per second."""
    offered_rate: float | None
    """Requests per second that the workload asks for; infinite if all are sent at once, None in a closed
    loop."""
    achieved_rate: float | None
    """Requests per second that the client sent, while it was sending."""
    overloaded: bool | None
    """Whether the load was above capacity (see ``fgbench.metrics.overload``), or all requests were sent at
    once. Means then depend on the number of requests, and on how many were rejected. None: not known.
    A closed loop is never above capacity."""
    shortfall: float | None
    """Share of the work due by the last arrival that was not done by then, including rejected requests. None
    if unknown."""
    scheduled_rate: float | None = None
    """Requests per second by the scheduled times; ``achieved_rate`` should be close to it."""
    trimmed: int = 0
    """Requests left out of all figures except ``overloaded`` and ``shortfall``."""
    window: tuple[float, float] | None = None
    """Start and end in seconds: only requests scheduled between them count. None if nothing is trimmed.
    Volumes and throughputs cover what ended in the window, even if it was scheduled earlier."""
    errors: dict[str, int] = field(default_factory=dict)
    """Number of failed requests by error class."""
    rejected: int = 0
    """Requests that the server rejected because it had too much to do."""
    window_throughput: float | None = None
    """Requests answered in full per second between the first and the last scheduled request. None if all were
    scheduled at once."""
    tokens_per_moment: float | None = None
    """Mean number of tokens that arrived together; None if the times of the pieces were not stored."""
    why_unjudged: str = ""
    """Why it is not known whether the load was above capacity; empty if it is known."""
    rejections: dict[str, int] = field(default_factory=dict)
    """Number of rejected requests by class: ``http 429``, ``queue timeout``."""

    distributions: dict[str, Distribution] = field(default_factory=dict)
    """Metrics of requests (``fgbench.metrics.metric``) by key, without those that no request has. In JSON,
    each key is on the same level as the other figures."""

    server_requests: int = 0
    """Requests that the server reported on; ``server_totals`` covers these."""
    server_totals: dict[str, float] = field(default_factory=dict)
    """Sums of what the server reported: preemptions, bytes_moved, and seconds in each state."""

    @property
    def rejected_share(self) -> float:
        """Share of the requests that were rejected, 0 to 1; 0 without requests."""
        return self.rejected / self.requests if self.requests else 0.0

    def figure(self, metric: str, statistic: str = "mean") -> float | None:
        """Return one number, such as the p99 of ``ttft``, or None if no request has the metric."""
        distribution = self.distributions.get(metric)
        return None if distribution is None else float(getattr(distribution, statistic))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite rate becomes the string "inf"."""
        data = asdict(self)
        data |= {key: data["distributions"].get(key) for key in OF_REQUESTS}
        del data["distributions"]
        if self.offered_rate is not None and math.isinf(self.offered_rate):
            data["offered_rate"] = "inf"
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Summary:
        """Read the output of ``to_dict``. Unknown keys are ignored, so that old readers can read new files.

        Raises:
            ValueError: a figure is missing or has the wrong type.
        """
        if not isinstance(data, dict):
            raise ValueError(f"not a summary: {data!r}")
        values = data | {
            "distributions": {key: data[key] for key in OF_REQUESTS if data.get(key) is not None},
            "offered_rate": math.inf if data.get("offered_rate") == "inf" else data.get("offered_rate"),
        }
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"not a summary: {error}") from None


def summarize(records: Sequence[RequestRecord], *, offered_rate: float | None, trim: Trim = WHOLE) -> Summary:
    """Return the figures of a run, which may have been interrupted.

    Without records, or if ``trim`` leaves none, the counts are zero.
    """
    judgement = _judgement(records, offered_rate)
    window = trim.window(records)
    everything = records
    if window is not None:
        records = [record for record in everything if window[0] <= record.scheduled <= window[1]]
    good = [record for record in records if record.ok]
    duration = _duration(records) if window is None else max(0.0, window[1] - window[0])
    answered = good if window is None else [r for r in everything if r.ok and _ended_within(r, window)]
    prompt_tokens = sum(record.prompt_tokens for record in answered)
    output_tokens = sum(record.output_tokens for record in answered)
    per_second = 1.0 / duration if duration > 0.0 else 0.0
    reports = [record.server for record in good if record.server]
    totals: dict[str, float] = {}
    for report in reports:
        for name, value in report.items():
            totals[name] = totals.get(name, 0.0) + value
    return Summary(
        requests=len(records),
        ok=len(good),
        failed=sum(record.error is not None for record in records),
        duration_s=duration,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        request_throughput=len(answered) * per_second,
        output_token_throughput=output_tokens * per_second,
        total_token_throughput=(prompt_tokens + output_tokens) * per_second,
        offered_rate=offered_rate,
        achieved_rate=_rate([record.sent for record in records]),
        scheduled_rate=_rate([record.scheduled for record in records]),
        trimmed=len(everything) - len(records),
        window=window,
        overloaded=judgement.overloaded,
        shortfall=judgement.shortfall,
        window_throughput=_window_throughput(records, everything, window),
        tokens_per_moment=_tokens_per_moment(good),
        why_unjudged=judgement.why_not,
        errors=_by_class(record.error for record in records),
        rejected=sum(record.rejected is not None for record in records),
        rejections=_by_class(record.rejected for record in records),
        distributions=distributions(records, good),
        server_requests=len(reports),
        server_totals=totals,
    )


def _window_throughput(
    counted: Sequence[RequestRecord],
    everything: Sequence[RequestRecord],
    window: tuple[float, float] | None,
) -> float | None:
    """Return the answers per second that ended between the first and the last counted arrival.

    If the run is trimmed, answers to requests that were scheduled before the window count too.
    """
    first = min((record.scheduled for record in counted), default=0.0) if window is None else window[0]
    last = max((record.scheduled for record in counted), default=0.0)
    ended = sum(record.ok and _ended_within(record, (first, last)) for record in everything)
    return ended / (last - first) if last > first else None


def _tokens_per_moment(records: Sequence[RequestRecord]) -> float | None:
    timed = [record for record in records if record.token_times]
    arrived = sum(map(moments, timed))
    return sum(record.output_tokens for record in timed) / arrived if arrived else None


def _judgement(records: Sequence[RequestRecord], offered_rate: float | None) -> Judgement:
    """Return whether the load was above capacity. ``offered_rate``: as for ``summarize``."""
    judged = judge(records)
    if rejects_many(records) or (offered_rate is not None and math.isinf(offered_rate)):
        return Judgement(True, judged.shortfall)
    if offered_rate is None:  # a closed loop sends only what is answered
        return Judgement(False, judged.shortfall)
    return judged


def _ended_within(record: RequestRecord, window: tuple[float, float]) -> bool:
    return record.finished is not None and window[0] <= record.finished <= window[1]


def _by_class(sentences: Iterable[str | None]) -> dict[str, int]:
    """Count sentences by the text before the colon: ``http 500`` for ``http 500: the engine stopped``."""
    return dict(Counter(sentence.partition(":")[0].strip() for sentence in sentences if sentence is not None))


def _duration(records: Sequence[RequestRecord]) -> float:
    ends = [record.finished for record in records if record.finished is not None]
    if not ends:
        return 0.0
    return max(0.0, max(ends) - min(record.scheduled for record in records))


def _rate(moments: Sequence[float]) -> float | None:
    """Return the events per second between the first and the last; None if all have the same time."""
    if len(moments) < 2 or max(moments) <= min(moments):
        return None
    return (len(moments) - 1) / (max(moments) - min(moments))
