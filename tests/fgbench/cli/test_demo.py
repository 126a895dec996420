"""Tests of the demo: its plan, and one complete run with a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgbench.cli.demo import BATCH_SIZE, MAX_PROMPTS, MIN_PROMPTS, make_plan
from fgengine.cost import CostModel


def test_the_capacity_is_one_divided_by_the_mean_machine_time_of_a_request() -> None:
    # A step with a full batch of 16 takes 32 ms. The prefill of a prompt takes 0.1 s.
    cost = CostModel(step=0.016, prefill_token=0.001, decode_request=0.001)
    lengths = [(84, 101)]
    share = 0.084 + 0.001 + 100 * 0.002
    assert cost.share_seconds(84, 101, BATCH_SIZE) == pytest.approx(share)
    plan = make_plan(cost, lengths, seconds=240.0)
    assert plan.capacity == pytest.approx(1 / share)
    assert plan.rates == (round(0.7 / share, 2), round(1.3 / share, 2))


def test_the_number_of_prompts_fits_the_time_and_its_limits() -> None:
    cost = CostModel(step=0.016, prefill_token=0.001, decode_request=0.001)
    plan = make_plan(cost, [(84, 101)], seconds=240.0)
    # Two policies, each with a run of n / (0.7 * capacity) seconds and one of n / capacity seconds.
    assert 2 * plan.num_prompts * (1 / 0.7 + 1.0) / plan.capacity == pytest.approx(240.0, rel=0.02)
    assert make_plan(cost, [(84, 101)], seconds=1.0).num_prompts == MIN_PROMPTS
    assert make_plan(cost, [(84, 101)], seconds=1e6).num_prompts == MAX_PROMPTS


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_plot(tmp_path: Path, new_cache: Path, tiny_model: Path) -> None:
    environment = {**os.environ, "FGBENCH_CACHE": str(new_cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fgbench", "demo", "--model", str(tiny_model), "--use-dummy-weights"]
    done = subprocess.run(
        [*command, "--minutes", "0.01", "--results", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fastgen-fcfs" in done.stdout
    runs = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*/run.json")]
    assert sorted(run["backend"]["policy"] for run in runs) == ["fcfs", "fcfs", "sj-mlfq", "sj-mlfq"]
    assert len({run["workload"]["rate"] for run in runs}) == 2
    assert all(run["summary"]["ok"] == MIN_PROMPTS for run in runs)
    for kind in ("png", "pdf"):
        (plot,) = (tmp_path / "results" / "compare").glob(f"*/latency.{kind}")
        assert plot.stat().st_size > 5000
