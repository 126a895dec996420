"""Decides from the request records whether the load was above capacity. Pure.

Above capacity, a backlog grows as long as requests arrive. The mean latency then shows how many requests were
sent, not how good the server is. Such runs must be marked. There are three answers: above capacity, not above
it, and not known.

**Method.** The *shortfall* compares what the server had delivered at one moment with what was due by then.
The moment is the last arrival. Two kinds of work are compared, and the larger shortfall counts:

- output tokens. Each request would stream from its scheduled time, plus the shortest time to first token of
  a request in the run whose prompt is at least as long. It would stream at the typical pace of the run: the
  median over requests of the median gap between pieces. Preemptions cause few, long gaps, so they do not
  change this median. Large simulations do not store the time of each token; there the pace is the 10th
  percentile of TPOT.
- first tokens. Each would arrive after that time.

Tokens are counted because the remaining work does not depend on the order of service: SRPT has few waiting
requests even under heavy overload. First tokens are counted because prefills can be what a server lacks time
for, above all if answers are short.

The shortest time to first token is used because the first requests of a run find an idle server, under every
overload. A percentile would be a queueing time if most requests wait.

If a server keeps up, its shortfall is only what its bounded queue holds. As a share, that goes to zero in a
long run. If the offered load is rho times the capacity, the shortfall is 1 - 1/rho. A shortfall above
``THRESHOLD`` is overload.

If requests arrive much faster than the server answers, hardly anything is due when the last one arrives. Then
the moment is one typical answer later.

A server with a bounded queue rejects what it cannot serve, so its backlog remains small. Therefore the tokens
that a rejected request asked for count as due and never as delivered. A run is also overloaded if more than
``THRESHOLD`` of its requests were rejected, since too few answers may remain to judge it.

**Limits.** A load within about 10% of capacity cannot be distinguished from capacity. The answer is not known
with fewer than ``MIN_REQUESTS`` streamed answers. It is not known either if the load was shorter than
``MIN_ANSWERS`` typical answers: the server then hardly held as many requests as it would in a longer load,
and a backlog had no time to grow. Requests that failed, or did not finish because the run was interrupted,
are ignored, and so are answers that were not streamed. If more than ``THRESHOLD`` of the requests failed, the
rest may look calm only because of that, so the answer is not known.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from fgbench.metrics.latency import tpot, ttft
from fgbench.metrics.record import RequestRecord

THRESHOLD = 0.1
"""Largest shortfall, and largest share of rejected requests, of a run that is not overloaded."""
MIN_REQUESTS = 20
"""Streamed answers needed to judge a run."""
MIN_DUE = 0.2
"""Smallest share of all tokens that must be due at the last arrival, to judge the run at that moment."""

MIN_ANSWERS = 3.0
"""Shortest load, in typical answers, that can be judged to be within capacity."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a load was above capacity."""

    overloaded: bool | None
    """None: not known."""
    shortfall: float | None = None
    """Share of the work due that was not delivered, 0 to 1; None if it cannot be computed."""
    why_not: str = ""
    """Why it is not known; empty if it is."""


@dataclass(frozen=True, slots=True)
class _Unqueued:
    """How the requests of a run would be answered if none had to wait."""

    prompts: tuple[int, ...]
    """Prompt tokens of the answered requests, ascending."""
    ttfts: tuple[float, ...]
    """For each of ``prompts``, the shortest time to first token of a prompt that is at least as long."""
    gap: float
    """Seconds between two pieces."""

    def ttft(self, record: RequestRecord) -> float:
        """Return the seconds to the first token of a request."""
        place = bisect_left(self.prompts, record.prompt_tokens)
        return self.ttfts[min(place, len(self.ttfts) - 1)]

    def pieces(self, record: RequestRecord, by: float) -> float:
        """Return how many pieces of an answer would have arrived by a time."""
        seconds, pieces = by - record.scheduled - self.ttft(record), _pieces(record)
        if seconds < 0.0:
            return 0.0
        return float(pieces) if seconds >= self.gap * (pieces - 1) else 1.0 + seconds / self.gap


def judge(records: Sequence[RequestRecord]) -> Judgement:
    """Return whether an open loop was above capacity, from the records of all its requests.

    judge(read_run("results/RUN").records).overloaded
    """
    streams = [record for record in records if record.ok and _is_streamed(record)]
    if len(streams) < MIN_REQUESTS:
        return Judgement(None, why_not=f"fewer than {MIN_REQUESTS} streamed answers")
    first, last = _window(records)
    if first == last:
        return Judgement(None, why_not="all requests were due at the same moment")
    unqueued = _unqueued(streams)
    answer = fmean(unqueued.ttft(record) + unqueued.gap * (_pieces(record) - 1) for record in streams)
    everything = [record for record in records if record.rejected is not None] + streams
    asked = sum(_tokens(record) for record in everything)
    moment = last
    if _due_tokens(everything, unqueued, last) < MIN_DUE * asked:
        moment = last + answer
    share = max(
        _token_shortfall(everything, unqueued, moment), _start_shortfall(everything, unqueued, moment)
    )
    if share > THRESHOLD:
        return Judgement(True, share)
    if sum(record.error is not None for record in records) > THRESHOLD * len(records):
        return Judgement(None, share, "many requests failed")
    if last - first < MIN_ANSWERS * answer:
        return Judgement(None, share, f"the load was shorter than {MIN_ANSWERS:g} typical answers")
    return Judgement(False, share)


def rejects_many(records: Sequence[RequestRecord]) -> bool:
    """Whether the server rejected so many requests that the run counts as overloaded."""
    return sum(record.rejected is not None for record in records) > THRESHOLD * len(records)


def _unqueued(streams: Sequence[RequestRecord]) -> _Unqueued:
    """Return how requests that do not wait are answered."""
    import numpy as np

    by_prompt = sorted((record.prompt_tokens, ttft(record) or 0.0) for record in streams)
    prompts = tuple(prompt for prompt, _ in by_prompt)
    ttfts = tuple(np.minimum.accumulate([seconds for _, seconds in reversed(by_prompt)])[::-1].tolist())
    gaps = [gap for record in streams if (gap := _typical_gap(record.token_times)) is not None]
    if gaps:
        return _Unqueued(prompts, ttfts, median(gaps))
    paces = [pace for record in streams if (pace := tpot(record)) is not None]
    return _Unqueued(prompts, ttfts, float(np.percentile(paces, 10)) if paces else 0.0)


def _window(records: Sequence[RequestRecord]) -> tuple[float, float]:
    """Return when the first and the last request were due."""
    return min(record.scheduled for record in records), max(record.scheduled for record in records)


def _token_shortfall(records: Sequence[RequestRecord], unqueued: _Unqueued, by: float) -> float:
    """Return the share of the output tokens due by a time that were not delivered by then."""
    due = _due_tokens(records, unqueued, by)
    delivered = sum(
        record.output_tokens * _delivered(record, by) / _pieces(record) for record in records if record.ok
    )
    return max(0.0, 1.0 - delivered / due) if due > 0.0 else 0.0


def _due_tokens(records: Sequence[RequestRecord], unqueued: _Unqueued, by: float) -> float:
    """Return the output tokens due by a time."""
    return sum(_tokens(record) * unqueued.pieces(record, by) / _pieces(record) for record in records)


def _start_shortfall(records: Sequence[RequestRecord], unqueued: _Unqueued, by: float) -> float:
    """Return the share of the first tokens due by a time that had not arrived by then."""
    due = sum(record.scheduled + unqueued.ttft(record) <= by for record in records)
    arrived = sum(record.first_token is not None and record.first_token <= by for record in records)
    return max(0.0, 1.0 - arrived / due) if due else 0.0


def _is_streamed(record: RequestRecord) -> bool:
    """Whether an answer came in pieces; one of a single token has only one."""
    return record.first_token is not None and (_pieces(record) > 1 or record.output_tokens == 1)


def _tokens(record: RequestRecord) -> int:
    """Return the tokens of the answer; those asked for if it was rejected."""
    return record.asked_tokens if record.rejected is not None else record.output_tokens


def _pieces(record: RequestRecord) -> int:
    """Return the number of streamed pieces; one per token if their times were not stored, or if rejected."""
    return len(record.token_times) or max(1, _tokens(record))


def _delivered(record: RequestRecord, by: float) -> float:
    """Return the number of pieces that had arrived by the time ``by``.

    If the times of the pieces were not stored, they are assumed evenly spaced between the first and the last.
    """
    if record.token_times:
        return bisect_right(record.token_times, by)
    first, last, pieces = record.first_token, record.last_token, _pieces(record)
    if first is None or last is None or by < first:
        return 0.0
    return float(pieces) if by >= last else 1.0 + (pieces - 1) * (by - first) / (last - first)


def _typical_gap(times: Sequence[float]) -> float | None:
    """Return the typical seconds from piece to piece: about one step, with or without preemptions.

    It is the median gap between the moments at which pieces arrived, divided by the pieces per moment. None
    if all arrived in one moment, or if their times were not stored.
    """
    moments = sorted(set(times))
    if len(moments) < 2:
        return None
    gap = median(later - earlier for earlier, later in pairwise(moments))
    return gap * (len(moments) - 1) / (len(times) - 1)
