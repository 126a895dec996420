"""Tests of the load's options: which arrival process and which dataset they select."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.spec.load import LoadSpec
from fgbench.workload.datasets import Lengths
from fgengine.config import EngineConfig

PROFILE = str(Path(__file__).parents[2] / "data" / "profile.json")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    rows = "".join(f"{i},{i + 10},{i + 5}\n" for i in range(9))
    path.write_text("timestamp,prompt_tokens,output_tokens\n" + rows)
    return path


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, "poisson"),
        ({"arrivals": "possion"}, "poisson"),
        ({"arrivals": "gamma", "cv": 2.0}, "gamma cv=2.0"),
        ({"cv": 2.0}, "gamma cv=2.0"),
        ({"arrivals": "uniform"}, "uniform"),
        ({"burst_size": 4}, "burst size=4"),
        ({"rate_to": 4.0}, "ramp rate_to=4.0"),
        ({"stages": "1:60,4:30"}, "stages stages=1:60,4:30"),
        ({"concurrency": 16}, "closed concurrency=16"),
        ({"arrivals": "closed", "concurrency": 16}, "closed concurrency=16"),
    ],
)
def test_options_select_the_arrival_process(options: dict[str, Any], label: str) -> None:
    assert LoadSpec(**options).to_load().arrivals.label == label


def test_default_rates_and_numbers_of_prompts(trace: Path) -> None:
    load = LoadSpec().to_load()
    assert (load.rate, load.offered_rate, load.num_prompts) == (2.5, 2.5, 100)
    assert LoadSpec(rate_to=4.0, rate=2.0).to_load().offered_rate == 3.0
    closed = LoadSpec(concurrency=16).to_load()
    assert (closed.rate, closed.offered_rate) == (math.inf, None)
    staged = LoadSpec(stages="1:60,4:30").to_load()
    assert (staged.rate, staged.num_prompts) == (2.0, 180)
    replayed = LoadSpec(trace=trace, speedup=2.0, limit=5).to_load()
    assert (replayed.rate, replayed.num_prompts) == (2.0, 5)
    assert LoadSpec(trace=trace, rate=3.0, num_prompts=4).to_load().rate == 3.0


def test_a_trace_is_the_dataset_unless_another_is_given(trace: Path) -> None:
    def name(**options: Any) -> str:
        return LoadSpec(trace=trace, **options).to_dataset(EngineConfig(), lambda line: None).name

    own = LoadSpec(trace=trace).to_dataset(EngineConfig(), lambda line: None)
    assert own == Lengths("mine", tuple((i + 10, i + 5) for i in range(9)), in_order=True)
    assert name(dataset="sharegpt-lengths") == "sharegpt-lengths"
    assert name(dataset="synthetic", input_len="4") == "synthetic-4x128"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--speedup", "2"], "leave out --speedup"),
        (["--rate-to", "4", "--rates", "inf"], "a ramp needs a finite --rate"),
    ],
)
def test_options_that_do_not_work_with_a_sweep(
    trace: Path, tmp_path: Path, argv: list[str], message: str
) -> None:
    if "--speedup" in argv:
        argv = [*argv, "--trace", str(trace)]
    rates = [] if "--rates" in argv else ["--rates", "1,2"]
    fixed = ["--backend", "simulated", "--profile", PROFILE, "--results", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, ["sweep", *fixed, *rates, *argv])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_sweep_replays_a_trace_at_each_rate(trace: Path, tmp_path: Path) -> None:
    fixed = ["--backend", "simulated", "--profile", PROFILE, "--results", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, ["sweep", *fixed, "--rates", "1,4", "--trace", str(trace)])
    assert done.exit_code == 0, done.output
    assert len(list(tmp_path.glob("runs/**/requests.jsonl"))) == 2


def test_too_long_requests_are_left_out_or_clipped(trace: Path) -> None:
    def drawn(**options: Any) -> tuple[str, list[tuple[int, int]]]:
        dataset = LoadSpec(**options).to_dataset(EngineConfig(), lambda line: None)
        found = islice(dataset.samples(np.random.default_rng(0)), 9)
        return dataset.name, [(sample.prompt_tokens, sample.output_tokens) for sample in found]

    name, fitting = drawn(max_total_len=300)
    assert name == "sharegpt-lengths-max300"
    assert max(map(sum, fitting)) <= 300
    name, clipped = drawn(trace=trace, max_total_len=18, clip=True)
    assert name == "mine-clip18"
    assert clipped == [(10, 5), (11, 6), (12, 6), (13, 5), (14, 4), (15, 3), (16, 2), (17, 1), (17, 1)]
    with pytest.raises(ValueError, match="--max-total-len needs --clip with a trace"):
        drawn(trace=trace, max_total_len=18)
    with pytest.raises(ValueError, match=r"none of 100,000 requests has at most 20 tokens"):
        drawn(dataset="synthetic", input_len="30", output_len="2", max_total_len=20)
    with pytest.raises(ValueError, match="--clip needs --max-total-len"):
        LoadSpec(clip=True).to_load()
    with pytest.raises(ValueError, match="--max-concurrency is for an open loop"):
        LoadSpec(concurrency=2, max_concurrency=2).to_load()
