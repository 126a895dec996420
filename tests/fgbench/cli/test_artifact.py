"""The published artifact's spellings of options."""

from __future__ import annotations

import pytest

from fgbench.cli.artifact import SPELLINGS, translated
from fgbench.cli.main import load_verb

FLAGS = {"--policy", "--offloading", "--rate", "--engine-seed", "--profile"}


@pytest.mark.parametrize(
    ("args", "ours"),
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
def test_spellings_are_said_as_ours(args: str, ours: str) -> None:
    assert translated(args.split(), FLAGS) == ours.split()


def test_a_spelling_that_is_an_option_of_the_command_stays_it() -> None:
    assert translated(["--seed", "3"], {*FLAGS, "--seed"}) == ["--seed", "3"]


def test_what_the_command_does_not_have_is_left_to_be_refused() -> None:
    assert translated(["--sched-policy", "x", "--use-skip-join"], {"--port"}) == [
        "--sched-policy",
        "x",
        "--use-skip-join",
    ]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--policy fcfs --use-skip-join", "goes with --policy mlfq or sj-mlfq, not fcfs"),
        ("--use-skip-join --policy=srpt", "goes with --policy mlfq or sj-mlfq, not srpt"),
        ("--offloading none --proactive-offloading", "--offloading none contradict each other"),
    ],
)
def test_contradictions_are_refused(args: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        translated(args.split(), FLAGS)


def test_every_spelling_stands_for_an_option_of_run() -> None:
    flags = {flag for parameter in load_verb("run").params for flag in parameter.opts}
    assert set(SPELLINGS.values()) <= flags
    assert not (set(SPELLINGS) - {"--seed"}) & flags, "none is in the help"
