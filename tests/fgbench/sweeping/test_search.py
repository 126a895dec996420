"""Bisection for the highest rate that meets an SLO."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgbench.sweeping.search import DIGITS, STEPS_DOWN, STEPS_UP, Bracket, Probe, Search

RATES = st.floats(0.01, 1000.0)
ROUNDING = 10.0 ** (1 - DIGITS)


def searched(search: Search, meets: Callable[[float], bool]) -> list[Probe]:
    probes: list[Probe] = []
    while (rate := search.next_rate(probes)) is not None:
        assert rate not in [probe.rate for probe in probes], "a rate was tried twice"
        probes.append(Probe(rate, meets(rate)))
    return probes


def test_a_small_search_step_by_step() -> None:
    probes = searched(Search(1.0, tolerance=0.1), lambda rate: rate <= 2.5)
    assert [(p.rate, p.met) for p in probes[:3]] == [(1.0, True), (2.0, True), (4.0, False)]
    assert probes[3] == Probe(2.828, False)
    assert probes[4] == Probe(2.378, True)
    assert Bracket.of(probes) == Bracket(2.378, 2.828)
    assert len(probes) == 5  # 2.603 with 9% uncertainty


@given(start=RATES, ratio=st.floats(1 / 14, 60.0), tolerance=st.floats(0.01, 0.5))
def test_the_limit_of_a_monotone_function_is_found_within_the_tolerance(
    start: float, ratio: float, tolerance: float
) -> None:
    limit = start * ratio
    probes = searched(Search(start, tolerance=tolerance, max_probes=100), lambda rate: rate <= limit)
    bracket = Bracket.of(probes)
    assert bracket.met is not None
    assert bracket.missed is not None
    assert bracket.rate is not None
    assert bracket.uncertainty is not None
    assert bracket.met <= limit < bracket.missed
    assert bracket.uncertainty <= tolerance
    assert abs(bracket.rate - limit) <= bracket.rate * tolerance * (1 + 1e-9)
    assert len(probes) <= STEPS_UP + 1 + math.ceil(math.log2(math.log(2.0) / (2 * tolerance))) + 2


@given(answers=st.lists(st.booleans(), min_size=100, max_size=100), start=RATES, limit=st.integers(1, 30))
def test_a_search_ends_with_any_answers_and_its_bracket_matches_them(
    answers: list[bool], start: float, limit: int
) -> None:
    given_answers = iter(answers)
    search = Search(start, max_probes=limit)
    probes = searched(search, lambda rate: next(given_answers))
    assert 1 <= len(probes) <= limit
    bracket = Bracket.of(probes)
    met = [p.rate for p in probes if p.met]
    missed = [p.rate for p in probes if not p.met]
    assert bracket == Bracket(max(met, default=None), min(missed, default=None))
    if met and missed:  # no rate is tried above one that missed or below one that met
        assert max(met) < min(missed)
    if len(probes) < limit:
        enough = bracket.uncertainty is not None and bracket.uncertainty <= search.tolerance
        top = not missed and max(met) == pytest.approx(start * 2.0**STEPS_UP, rel=ROUNDING)
        bottom = not met and min(missed) == pytest.approx(start / 2.0**STEPS_DOWN, rel=ROUNDING)
        assert enough or top or bottom


@given(start=RATES, limit=RATES, cut=st.integers(0, 20))
def test_a_search_can_be_resumed_from_its_probes(start: float, limit: float, cut: int) -> None:
    search = Search(start)
    probes = searched(search, lambda rate: rate <= limit)
    if cut < len(probes):
        assert search.next_rate(probes[:cut]) == probes[cut].rate
    assert search.next_rate(probes) is None


@given(start=st.floats(1.0, 4.0), met=st.booleans())
def test_rates_remain_within_the_limits_and_reach_them(start: float, met: bool) -> None:
    probes = searched(Search(start, lowest=1.0, highest=4.0), lambda rate: met)
    assert all(1.0 <= probe.rate <= 4.0 for probe in probes)
    assert probes[-1].rate == (4.0 if met else 1.0)


def test_steps_left_is_the_number_of_remaining_probes() -> None:
    search = Search(1.0, tolerance=0.02)
    probes: list[Probe] = []
    predicted = []
    while (rate := search.next_rate(probes)) is not None:
        predicted.append(search.steps_left(probes))
        probes.append(Probe(rate, rate <= 1.37))
    assert predicted[:2] == [None, None]
    assert predicted[2:] == list(range(len(probes) - 2, 0, -1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 0.0}, "finite rate above 0"),
        ({"start": math.inf}, "finite rate above 0"),
        ({"start": 1.0, "tolerance": 0.0}, "--tolerance must be between"),
        ({"start": 1.0, "max_probes": 0}, "--max-probes must be between"),
        ({"start": 1.0, "lowest": 2.0}, "outside its own limits"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Search(**values)  # type: ignore[arg-type]
