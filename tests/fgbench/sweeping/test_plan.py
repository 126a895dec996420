"""The points of a sweep and their fingerprints."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from fgbench.metrics.trimming import Trim
from fgbench.spec.load import Load
from fgbench.sweeping.plan import MAX_POINTS, SweepPlan
from fgbench.workload.arrivals import ClosedLoop, Gamma, Ramp, Uniform

SYSTEMS: dict[str, dict[str, Any]] = {
    "a": {"name": "fastgen", "settings": {"policy": "sj-mlfq", "batch": 8}},
    "b": {"name": "fastgen-fcfs", "settings": {"policy": "fcfs", "batch": 8}},
}
LOAD = Load(num_prompts=10)
PLAN = SweepPlan(SYSTEMS, LOAD, {0: "requests of seed 0", 1: "requests of seed 1"})


def test_points_are_grouped_by_backend_and_seed() -> None:
    points = [(p.backend, p.seed, p.rate) for p in PLAN.grid((1.0, 2.0), (0, 1))]
    assert points == [(b, s, r) for b in "ab" for s in (0, 1) for r in (1.0, 2.0)]


def test_interleaved_points_take_turns_and_none_is_always_first() -> None:
    points = list(PLAN.grid((1.0, 2.0), (0, 1), "interleaved"))
    assert [(p.seed, p.rate) for p in points[::2]] == [(s, r) for s in (0, 1) for r in (1.0, 2.0)]
    assert [(p.seed, p.rate) for p in points[::2]] == [(p.seed, p.rate) for p in points[1::2]]
    assert "".join(p.backend for p in points) == "ab" + "ba" + "ba" + "ab"
    assert set(points) == set(PLAN.grid((1.0, 2.0), (0, 1)))


def test_the_fingerprint_covers_everything_that_affects_the_result() -> None:
    point = PLAN.point("a", 1.0, 0)
    assert point == PLAN.point("a", 1.0, 0)
    others = [PLAN.point("a", 2.0, 0), PLAN.point("a", math.inf, 0), PLAN.point("a", 1.0, 1)]
    others.append(PLAN.point("b", 1.0, 0))
    other_batch = {"a": {"name": "fastgen", "settings": {"policy": "sj-mlfq", "batch": 9}}}
    others.append(dataclasses.replace(PLAN, systems=other_batch).point("a", 1.0, 0))
    others.append(dataclasses.replace(PLAN, workloads={0: "others"}).point("a", 1.0, 0))
    changed: list[dict[str, Any]] = [
        {"num_prompts": 11},
        {"num_warmup": 0},
        {"endpoint": "generate"},
        {"request_timeout": 1.0},
    ]
    changed += [{"duration": 9.0}, {"trim": Trim.parse("10%", "10%")}]
    for change in [*changed, {"users": 2}, *({"arrivals": a} for a in (Uniform(), Gamma(2.0), Ramp(2.0)))]:
        load = dataclasses.replace(LOAD, **change)  # type: ignore[arg-type]
        others.append(dataclasses.replace(PLAN, base=load).point("a", 1.0, 0))
    fingerprints = [p.fingerprint for p in [point, *others]]
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_point_as_json_and_as_text() -> None:
    point = PLAN.point("a", math.inf, 1)
    expected = {"backend": "a", "rate": "inf", "seed": 1, "fingerprint": point.fingerprint}
    assert point.to_json() == expected
    assert str(point) == "a, all at once, seed 1"


def test_changes_are_named() -> None:
    described = PLAN.describe()
    assert PLAN.changed_since(described) is None
    other_batch = {**SYSTEMS, "b": {"name": "fastgen-fcfs", "settings": {"policy": "fcfs", "batch": 9}}}
    assert dataclasses.replace(PLAN, systems=other_batch).changed_since(described) == "batch of b"
    other_file = dataclasses.replace(PLAN, workloads={0: "others", 1: "requests of seed 1"})
    assert other_file.changed_since(described) == "the requests of the dataset"
    begun_without_b = {**described, "systems": {"a": SYSTEMS["a"]}}
    assert PLAN.changed_since(begun_without_b) is None


def test_too_many_points_are_refused() -> None:
    with pytest.raises(ValueError, match="points are too many"):
        list(PLAN.grid([1.0] * MAX_POINTS, (0,)))


def test_points_of_closed_loops_have_a_concurrency() -> None:
    points = list(PLAN.grid((ClosedLoop(1), ClosedLoop(16)), (0,)))
    assert [(p.backend, p.concurrency, p.rate) for p in points] == [
        (backend, workers, math.inf) for backend in "ab" for workers in (1, 16)
    ]
    assert str(points[1]) == "a, 16 in flight, seed 0"
    assert points[1].to_json() == {
        "backend": "a",
        "rate": "inf",
        "concurrency": 16,
        "seed": 0,
        "fingerprint": points[1].fingerprint,
    }
    assert PLAN.load(ClosedLoop(16), 0).arrivals == ClosedLoop(16)
    all_at_once = PLAN.point("a", math.inf, 0)
    assert len({p.fingerprint for p in [*points, all_at_once]}) == 5
    assert "concurrency" not in all_at_once.to_json()
