"""The marks of runs: each applies when it should, and every sign and note is its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fgbench.metrics.summary import Summary
from fgbench.report.marks import (
    ALL,
    ANALYTIC,
    CACHED,
    CLIENT,
    CLUMPED,
    DISTURBED,
    INCOMPLETE,
    OVERLOADED,
    UNJUDGED,
    Mark,
    marks_of,
    merged,
    notes_on,
    signs,
)
from fgbench.results.run import Run, summary_of

Make = Callable[..., Run]


@pytest.fixture
def good(make_run: Make) -> tuple[dict[str, Any], Summary]:
    """A run that needs no mark."""
    run = make_run("a")
    return run.info, replace(summary_of(run), overloaded=False, why_unjudged="")


def test_signs_and_words_are_different() -> None:
    assert len({mark.sign for mark in ALL}) == len({mark.words for mark in ALL}) == len(ALL)


def test_each_mark_applies_to_its_own_runs(good: tuple[dict[str, Any], Summary]) -> None:
    info, summary = good
    assert marks_of(info, summary) == {}

    def found(changed: dict[str, Any] | None = None, **figures: Any) -> dict[Mark, str]:
        return marks_of({**info, **(changed or {})}, replace(summary, **figures))

    lag = replace(summary.distributions["ttft"], p99=100.0)
    assert found(overloaded=True) == {OVERLOADED: ""}
    assert found(overloaded=None, why_unjudged="too few") == {UNJUDGED: "too few"}
    assert found(tokens_per_moment=4.0) == {CLUMPED: "4 at a time"}
    assert found(tokens_per_moment=1.1) == {}
    assert found(distributions={**summary.distributions, "lag": lag}) == {CLIENT: ""}
    assert found({"status": "running"}) == {INCOMPLETE: ""}
    settings = {"settings": {"analytic_device": "h200"}}
    assert found({"backend": settings}) == {ANALYTIC: "h200"}
    assert {DISTURBED, CACHED} <= set(ALL)


def test_notes_name_the_details_of_all_runs_once() -> None:
    each = [{ANALYTIC: "h200"}, {ANALYTIC: "l40s", OVERLOADED: ""}, {ANALYTIC: "h200"}]
    assert merged(each) == {OVERLOADED: [""], ANALYTIC: ["h200", "l40s", "h200"]}
    over, analytic = notes_on(each)
    assert over.startswith("▲ above capacity: a backlog grew")
    assert analytic.startswith("ƒ an analytic device (h200, l40s): step times")
    assert signs(merged(each)) == " ▲ ƒ"
    assert notes_on([]) == []
