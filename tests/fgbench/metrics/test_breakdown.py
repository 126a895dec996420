from __future__ import annotations

import pytest

from fgbench.metrics.accounts import Breakdown
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize


def record(server: dict[str, float] | None) -> RequestRecord:
    return RequestRecord(0, 0.0, 0.0, 4, 2, 2, 1.0, 2.0, (1.0, 2.0), 2.0, None, server)


def test_means_cover_only_the_requests_that_the_server_reports_on() -> None:
    records = [
        record({"queued": 1.0, "decode": 2.0, "preemptions": 1.0, "bytes_moved": 100.0}),
        record({"queued": 3.0, "decode": 4.0, "preemptions": 0.0, "bytes_moved": 0.0}),
        record(None),
    ]
    breakdown = Breakdown.of(summarize(records, offered_rate=1.0))
    assert breakdown is not None
    assert breakdown.seconds == {"queued": pytest.approx(2.0), "decode": pytest.approx(3.0)}
    assert (breakdown.preemptions, breakdown.bytes_moved) == (0.5, 50.0)


def test_a_server_that_reports_nothing_has_no_breakdown() -> None:
    assert Breakdown.of(summarize([record(None)], offered_rate=1.0)) is None
