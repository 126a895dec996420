"""Tests of the option names of FastServe's published artifact."""

from __future__ import annotations

import pytest

from fgbench.cli.artifact import SPELLINGS, translated
from fgbench.cli.main import load_verb

FLAGS = {"--policy", "--offloading", "--rate", "--engine-seed", "--profile"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("--sched-policy mlfq", "--policy mlfq"),
        ("--sched-policy=mlfq --rate 2", "--policy=mlfq --rate 2"),
        ("--use-skip-join", "--policy sj-mlfq"),
        ("--sched-policy mlfq --use-skip-join", "--policy mlfq --policy sj-mlfq"),
        ("--policy sj-mlfq --use-skip-join", "--policy sj-mlfq"),
        ("--proactive-offloading", "--offloading proactive"),
        ("--offloading proactive --proactive-offloading", "--offloading proactive --offloading proactive"),
        ("--seed 3", "--engine-seed 3"),
        ("--profiling-file f --unknown-option", "--profile f --unknown-option"),
        ("-- --sched-policy", "-- --sched-policy"),
        ("", ""),
    ],
)
def test_artifact_options_are_translated(args: str, expected: str) -> None:
    assert translated(args.split(), FLAGS) == expected.split()


def test_an_artifact_option_that_the_command_has_itself_is_not_translated() -> None:
    assert translated(["--seed", "3"], {*FLAGS, "--seed"}) == ["--seed", "3"]


def test_artifact_options_without_a_counterpart_remain_unchanged() -> None:
    assert translated(["--sched-policy", "x", "--use-skip-join"], {"--port"}) == [
        "--sched-policy",
        "x",
        "--use-skip-join",
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--policy fcfs --use-skip-join", "--policy fcfs: use --policy mlfq or sj-mlfq"),
        ("--use-skip-join --policy=srpt", "--policy srpt: use --policy mlfq or sj-mlfq"),
        ("--offloading none --proactive-offloading", "--offloading none contradict each other"),
    ],
)
def test_contradicting_options_are_an_error(args: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translated(args.split(), FLAGS)


def test_every_artifact_option_is_translated_to_an_option_of_run() -> None:
    flags = {flag for parameter in load_verb("run").params for flag in parameter.opts}
    assert set(SPELLINGS.values()) <= flags
    assert not (set(SPELLINGS) - {"--seed"}) & flags, "no artifact option is in the help"
