"""``fgbench demo``: uses the complete suite once on this machine, with a real model, in a few minutes."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.cli.printing import say
from fgbench.sweeping.estimate import capacity
from fgengine.child import python_module

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from fgbench.workload.datasets import Dataset
    from fgengine.cost import CostModel

BATCH_SIZE = 16
POLICIES = ("fcfs", "sj-mlfq")
LOADS = (0.7, 1.3)
"""The offered rates, as shares of the capacity that the profile predicts."""
MIN_PROMPTS, MAX_PROMPTS = 30, 400
"""Limits on the number of prompts of one run."""
MAX_MINUTES = 24 * 60
DEFAULT_MINUTES, QUICK_MINUTES = 4.0, 0.75
QUICK_LOADS = (2.5,)
"""Far above capacity, so that few requests are enough to fill the queue."""


@dataclass(frozen=True, slots=True)
class DemoLoads:
    """The loads that the demo sends."""

    capacity: float
    """Predicted requests per second with full batches."""
    rates: tuple[float, ...]
    num_prompts: int


def make_plan(
    cost: CostModel,
    lengths: Sequence[tuple[int, int]],
    seconds: float,
    loads: Sequence[float] = LOADS,
) -> DemoLoads:
    """Choose rates around the predicted capacity, and a number of prompts so that all runs take ``seconds``.

    A run takes about as long as its requests need to arrive or to be served, whichever is longer.
    """
    full = capacity(cost, lengths, BATCH_SIZE)
    seconds_per_prompt = len(POLICIES) * sum(1.0 / (full * min(load, 1.0)) for load in loads)
    num_prompts = min(MAX_PROMPTS, max(MIN_PROMPTS, int(seconds / seconds_per_prompt)))
    return DemoLoads(full, tuple(round(full * load, 2) for load in loads), num_prompts)


def demo(
    model: Annotated[str, typer.Option(help="A catalog name, or a Hugging Face folder.")] = "smollm2-135m",
    use_dummy_weights: Annotated[
        bool, typer.Option("--use-dummy-weights", "--dummy-weights", help="Random weights: the same speed.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="One rate and few requests: under two minutes on two cores.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(help=f"Minutes that all loads together may take. Default: {DEFAULT_MINUTES:g}."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed: same prompts, lengths and arrivals.")] = 0,
    results: Annotated[Path, typer.Option(help="Folder for the run folders.")] = Path("results"),
) -> None:
    """Try everything once: download a model, profile it, compare two policies.

    The policies are FastGen's sj-mlfq and FCFS. Both serve the same requests,
    with the lengths of real ShareGPT conversations, at two rates: one below
    this machine's capacity and one above it (with --quick, only the one above).

    Example: fgbench demo --quick

    You can also give the demo's commands yourself:

        fgbench models pull smollm2-135m
        fgbench profile --quick
        fgbench run --backend fastgen-fcfs --rate 2
        fgbench run --backend fastgen --rate 2
        fgbench compare
    """
    from rich.console import Console

    from fgbench.backends.backend import BackendError
    from fgbench.sweeping.estimate import sampled_lengths
    from fgbench.workload.reading import load_dataset
    from fgengine.extras import require_package

    require_package("torch", "fgbench demo")
    if minutes is None:
        minutes = QUICK_MINUTES if quick else DEFAULT_MINUTES
    loads = QUICK_LOADS if quick else LOADS
    if not 0 < minutes <= MAX_MINUTES:
        raise ValueError(f"--minutes is {minutes}: it must be above 0 and at most {MAX_MINUTES}")
    console = Console()
    weights = ["--use-dummy-weights"] if use_dummy_weights else []
    _headline(console, f"1. {model}")
    if use_dummy_weights:
        say(console, "random weights: nothing to pull")
    else:
        _verb("models", "pull", model)
    _headline(console, "2. A quick profile: how long this machine's steps take")
    _verb("profile", "--quick", "--patience", "20", "--even-if-busy", "--model", model, *weights)
    dataset = load_dataset("sharegpt-lengths")
    plan = make_plan(_cost_of(model), sampled_lengths(dataset, seed), minutes * 60.0, loads)
    say(
        console,
        f"With batches of {BATCH_SIZE} this machine should serve about {plan.capacity:.2f} requests/s: "
        f"{plan.num_prompts} requests are sent at {' and at '.join(f'{rate:g}/s' for rate in plan.rates)}.",
    )
    _headline(console, f"3. The load: {len(loads) * len(POLICIES)} runs, about {minutes:g} minutes")
    try:
        runs = _measure(model, use_dummy_weights, plan, dataset, seed, results, console)
    except BackendError as error:
        say(console, str(error), "bold red")
        raise typer.Exit(1) from error
    _headline(console, "4. Side by side")
    _verb("compare", *map(str, runs), "--baseline", f"fastgen-{POLICIES[0]}", "--results", str(results))


def _measure(
    model: str,
    dummy_weights: bool,
    plan: DemoLoads,
    dataset: Dataset,
    seed: int,
    results: Path,
    console: Console,
) -> list[Path]:
    """Run each rate with each policy; return the run folders. Ends the program if a run does not succeed."""
    from fgbench.backends.fastgen import FastGen
    from fgbench.benchmark import execute_run
    from fgbench.live.display import display_for
    from fgbench.spec.load import Load
    from fgengine.config import EngineConfig

    folders = []
    for rate in plan.rates:
        for policy in POLICIES:
            config = EngineConfig(
                model=model, use_dummy_weights=dummy_weights, policy=policy, max_batch_size=BATCH_SIZE
            )
            load = Load(rate=rate, num_prompts=plan.num_prompts, seed=seed)
            run = execute_run(FastGen(config), dataset, load, results=results, display=display_for(console))
            if run.status != "complete":
                say(console, f"The run in {run.path} is {run.status}; its folder remains.", "bold red")
                raise typer.Exit(130 if run.status == "interrupted" else 1)
            folders.append(run.path)
    return folders


def _cost_of(model: str) -> CostModel:
    """Return the cost model of the model's newest profile: the one that the demo has just measured."""
    from fgengine.profile_cache import newest_profile

    profile = newest_profile(model)
    if profile is None:
        raise ValueError(
            "the profile could not be saved in the cache: set FGBENCH_CACHE to a folder that you can write to"
        )
    return profile.cost


def _verb(*arguments: str) -> None:
    """Run another verb in a separate process, so that no model remains in this one's memory."""
    code = subprocess.run(python_module("fgbench", *arguments), check=False).returncode
    if code != 0:
        raise typer.Exit(code)


def _headline(console: Console, text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")
