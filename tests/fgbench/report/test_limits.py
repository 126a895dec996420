"""Limits that end ``fgbench compare`` with an exit code, for continuous integration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fgbench.report.comparison import Comparison, compare
from fgbench.report.limits import parse_limit
from fgbench.results.run import Run

Make = Callable[..., Run]


@pytest.fixture
def comparison(make_run: Make) -> Comparison:
    """The backend ``new`` needs 1.2 times as long as the baseline at 2/s, and as long at 4/s."""
    runs = [
        make_run("fastgen-fcfs", 2.0, latency=1.0),
        make_run("new", 2.0, latency=1.2),
        make_run("fastgen-fcfs", 4.0, latency=1.0),
        make_run("new", 4.0, latency=1.0),
    ]
    (found,) = compare(runs)
    return found


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("p95 jct > 1.05", ["new has 1.20x at 2 requests / s"]),
        ("jct>1.05x", ["new has 1.20x at 2 requests / s"]),
        ("jct > 1.25", []),
        ("mean jct > 1.1s", ["new has 1.2 s at 2 requests / s"]),
        ("jct > 1100ms", ["new has 1.2 s at 2 requests / s"]),
        ("request_throughput < 0.5", []),
        ("latency > 1.05", ["new has 1.20x at 2 requests / s"]),  # an alias of jct
    ],
)
def test_what_breaks_a_limit_is_named(comparison: Comparison, text: str, broken: list[str]) -> None:
    found = list(parse_limit(text).broken_by(comparison))
    assert found == [f"{text.strip()} is broken: {one}" for one in broken]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jct", "is no limit: write one like"),
        ("jct > fast", "is no limit"),
        ("p95 speed > 1", "this figure is not compared"),
        ("p7 jct > 1", "this figure is not compared"),
        ("request_throughput > 2s", "is no time: leave out the unit"),
        ("preemptions > 2x", "gets no ratio"),
        ("jct > 5%", "is no share: leave out the %"),
    ],
)
def test_a_wrong_limit_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_limit(text)


def sentences(runs: list[Run], text: str) -> list[str]:
    (found,) = compare(runs)
    return list(parse_limit(text).broken_by(found))


def failed(run: Run) -> Run:
    """Return the run as if all of its requests had failed."""
    broken = [
        replace(record, error="http 500: no", first_token=None, last_token=None) for record in run.records
    ]
    return replace(run, records=tuple(broken))


def test_what_cannot_be_checked_does_not_pass(make_run: Make) -> None:
    base, new = make_run("fastgen-fcfs"), make_run("new")
    assert sentences([base, new], "jct > 1.05") == []
    assert sentences([base, failed(new)], "jct > 1.05") == [
        "jct > 1.05 could not be checked for new at 2 requests / s: it has no JCT"
    ]
    assert sentences([base, failed(new)], "request_throughput < 0.95") == [
        "request_throughput < 0.95 is broken: new has 0.00x at 2 requests / s"
    ]
    killed = make_run("new", status="interrupted")
    assert "the run is not complete" in sentences([base, killed], "jct > 0.9")[0]
    assert (
        "the baseline has no complete run there" in sentences([base, make_run("new", 4.0)], "jct > 1.05")[0]
    )
    assert "no other backend than the baseline" in sentences([base], "jct > 1.05")[0]
    rejecting = make_run("new", rejected=2)
    assert sentences([base, rejecting], "rejected_share > 10%") == [
        "rejected_share > 10% is broken: new has 50% at 2 requests / s"
    ]
    assert sentences([base, rejecting], "rejected_share > 0.6") == []
