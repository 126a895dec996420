from __future__ import annotations

import random

import pytest

from fgbench.metrics.record import RequestRecord
from fgbench.metrics.timeline import queue_lengths


def request(scheduled: float, first: float | None, finished: float | None) -> RequestRecord:
    return RequestRecord(0, scheduled, scheduled, 1, 1, 1, first, finished, finished=finished)


def test_a_request_waits_until_its_first_token_and_is_answered_until_it_ends() -> None:
    timeline = queue_lengths([request(10.0, 12.0, 14.0), request(11.0, 12.5, 13.0)], parts=4)
    assert timeline is not None
    assert timeline.times == [0.5, 1.5, 2.5, 3.5]
    assert timeline.waiting == pytest.approx([1.0, 2.0, 0.5, 0.0])
    assert timeline.answering == pytest.approx([0.0, 0.0, 1.5, 1.0])


def test_a_request_without_a_token_waits_until_it_fails() -> None:
    timeline = queue_lengths([request(0.0, None, 2.0)], parts=2)
    assert timeline is not None
    assert timeline.waiting == pytest.approx([1.0, 1.0])
    assert timeline.answering == pytest.approx([0.0, 0.0])


def test_without_an_ended_request_there_is_no_timeline() -> None:
    assert queue_lengths([]) is None
    assert queue_lengths([request(0.0, None, None)]) is None
    assert queue_lengths([request(1.0, 1.0, 1.0)]) is None


def test_means_equal_counts_at_many_moments() -> None:
    rnd = random.Random(5)
    records = []
    for _ in range(60):
        start = rnd.uniform(0.0, 50.0)
        first = start + rnd.expovariate(0.5)
        records.append(request(start, first, first + rnd.expovariate(0.3)))
    timeline = queue_lengths(records, parts=10)
    assert timeline is not None
    begin = min(r.scheduled for r in records)
    end = max(r.finished or 0.0 for r in records)
    width = (end - begin) / 10
    for part in range(10):
        moments = [begin + width * (part + (k + 0.5) / 400) for k in range(400)]
        waiting = sum(r.scheduled <= t < (r.first_token or 0.0) for t in moments for r in records) / 400
        answering = (
            sum((r.first_token or 0.0) <= t < (r.finished or 0.0) for t in moments for r in records) / 400
        )
        assert timeline.waiting[part] == pytest.approx(waiting, abs=0.06)
        assert timeline.answering[part] == pytest.approx(answering, abs=0.06)


def test_the_timeline_of_a_large_run_has_the_same_size() -> None:
    timeline = queue_lengths([request(0.01 * i, 0.01 * i + 1.0, 0.01 * i + 2.0) for i in range(20_000)])
    assert timeline is not None
    assert len(timeline.times) == 120
    assert timeline.waiting[60] == pytest.approx(100.0, rel=0.01)
