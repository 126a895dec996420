"""Tests of the published curves, and of the comparison with them."""

from __future__ import annotations

import pytest

from fgbench.metrics.crossing import Range, rate_at
from fgbench.reproduction.deviations import Deviation, deviations, largest_first
from fgbench.reproduction.figures import FIGURES, PublishedPanel
from fgbench.reproduction.published import published_curves

SHAREGPT = PublishedPanel("fig11-sharegpt", "OPT-13B, ShareGPT", "sharegpt")


def exactly(value: float) -> Range:
    return Range(value, value)


def test_the_published_curves_give_the_ratios_that_the_paper_prints() -> None:
    curves = published_curves()["fig11-sharegpt"]
    rates = {system: rate_at(curve, 0.3) for system, curve in curves.items()}
    fastgen = rates["fastgen"]
    assert fastgen is not None
    assert fastgen.exact == pytest.approx(4.89, abs=0.01)
    ratios = {system: fastgen.over(rate).exact for system, rate in rates.items() if rate is not None}
    assert ratios["fastgen-fcfs"] == pytest.approx(2.03, abs=0.01)
    assert ratios["vllm"] == pytest.approx(2.13, abs=0.01)
    assert ratios["fastertransformer"] == pytest.approx(31.5, abs=1.0)


def test_every_published_panel_belongs_to_a_figure_and_rises_in_rate() -> None:
    panels = [panel for figure in FIGURES.values() for panel in figure.panels]
    named = {panel.name for panel in panels if isinstance(panel, PublishedPanel)}
    assert named == set(published_curves())
    for systems in published_curves().values():
        for curve in systems.values():
            rates = [rate for rate, _ in curve]
            assert rates == sorted(set(rates))
            assert all(value > 0 for _, value in curve)


def test_rates_and_ratios_are_compared_with_the_published_ones() -> None:
    ours = {"fastgen": [(1.0, 0.1), (4.0, 0.4)], "vllm-stand-in": [(1.0, 0.1), (2.0, 0.5)]}
    published = {"fastgen": [(1.0, 0.1), (2.0, 0.5)], "vllm": [(1.0, 0.1), (2.0, 0.5)]}
    found = {one.what: one for one in deviations(SHAREGPT, ours, published)}
    assert found["fastgen at 0.3 s/token"].ours == exactly(pytest.approx(3.0))
    assert found["fastgen at 0.3 s/token"].factor == pytest.approx(2.0)
    assert found["vllm at 0.3 s/token"].factor == pytest.approx(1.0)
    ratio = found["fastgen / vllm"]
    assert (ratio.unit, ratio.factor) == ("x", pytest.approx(2.0))
    assert ratio.to_json()["here"] == [pytest.approx(2.0)] * 2


def test_a_rate_known_by_a_bound_has_no_factor() -> None:
    ours = {"fastgen": [(1.0, 0.1), (4.0, 0.2)]}
    published = {"fastgen": [(1.0, 0.1), (2.0, 0.5)], "vllm": [(1.0, 0.1), (2.0, 0.5)]}
    found = {one.what: one for one in deviations(SHAREGPT, ours, published)}
    assert found["fastgen at 0.3 s/token"].factor is None
    assert found["fastgen at 0.3 s/token"].to_json()["here"] == [4.0, None]
    assert found["vllm at 0.3 s/token"].ours is None
    assert found["fastgen / vllm"].ours is None


def test_the_largest_deviation_comes_first_up_or_down() -> None:
    def deviation(what: str, ours: float | None) -> Deviation:
        return Deviation("panel", what, "/s", None if ours is None else exactly(ours), exactly(1.0))

    found = [
        deviation("small", 1.1),
        deviation("unknown", None),
        deviation("up", 2.0),
        deviation("down", 0.4),
    ]
    assert [one.what for one in largest_first(found)] == ["down", "up", "small", "unknown"]
