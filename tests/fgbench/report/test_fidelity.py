"""The step speed of a run's server, computed from the counters in run.json."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fgbench.report.fidelity import StepSpeed
from fgengine.cost import CostModel
from fgengine.work import Work

COST = CostModel(step=0.01)
WORK = Work(work_steps=100, model_seconds=1.1, engine_seconds=0.05, between_seconds=0.05)
NOTHING = dataclasses.asdict(Work())


def info(**values: float) -> dict[str, Any]:
    return {"server_stats": {"before": NOTHING, "after": dataclasses.asdict(WORK) | values}}


def test_waiting_for_copies_does_not_change_the_step_speed() -> None:
    expected = StepSpeed(model=pytest.approx(1.1), total=pytest.approx(1.2))
    assert StepSpeed.of(info(), COST) == expected
    assert StepSpeed.of(info(copy_wait_seconds=30.0), COST) == expected


def test_older_runs_without_copy_waits_have_a_step_speed() -> None:
    older = info()
    for side in ("before", "after"):
        stats = older["server_stats"][side]
        older["server_stats"][side] = {k: v for k, v in stats.items() if k != "copy_wait_seconds"}
    assert StepSpeed.of(older, COST) is not None
    assert StepSpeed.of(older, COST) == StepSpeed.of(info(), COST)


def test_a_simulation_has_no_step_speed() -> None:
    stats = {"before": {"finished": 0.0}, "after": {"finished": 4}}
    assert StepSpeed.of({"server_stats": stats}, COST) is None
    assert StepSpeed.of({}, COST) is None
