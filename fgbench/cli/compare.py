"""``fgbench compare``: runs side by side, as a table and as a plot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from fgbench.report.comparison import Comparison, Workload
    from fgbench.results.run import Run

T = TypeVar("T")
MOST_FOLDERS = 500
"""Newest run folders looked at when none are named."""


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders; default: the newest ones on the newest run's workload."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Backend or run folder to divide by; default: fastgen-fcfs, else the first run."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the plots; default: RESULTS/compare.")] = None,
    results: Annotated[Path, typer.Option(help="Where the run folders are.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare runs: latencies, throughput, ratios to a baseline, and a plot of latency over rate.

    Runs are compared only on the same model, dataset, prompts, seed and arrivals; others are shown apart.

    Example: benchmark two policies on the same requests, then set them side by side:

        fgbench run --rate 2 --backend fastgen
        fgbench run --rate 2 --backend fastgen-fcfs
        fgbench compare --baseline fastgen-fcfs
    """
    from rich.console import Console

    from fgbench.report.comparison import compare as compare_runs
    from fgbench.report.comparison import differences
    from fgbench.results.run import read_run

    console = Console(stderr=as_json)
    chosen = [read_run(path) for path in dict.fromkeys(runs)] if runs else _newest(results, console)
    empty = [run.path for run in chosen if not run.records]
    comparisons = compare_runs([run for run in chosen if run.records], baseline)
    for path in empty:
        console.print(f"{path} holds no finished request: left out.", soft_wrap=True)
    if len(comparisons) > 1:
        what = differences(comparison.workload for comparison in comparisons)
        console.print(
            f"These runs are on {len(comparisons)} different workloads and are not compared across them: "
            f"they differ in {what}.",
            style="yellow",
            soft_wrap=True,
        )
    folder = out or results / "compare"
    names = _file_names([comparison.workload for comparison in comparisons])
    shown = [
        _show(comparison, folder / name, console, as_json)
        for comparison, name in zip(comparisons, names, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps({"comparisons": shown}, indent=2, allow_nan=False))
    if not any(len(comparison.entries) > 1 for comparison in comparisons):
        console.print("Nothing to compare: no two of these runs are on the same workload.", style="red")
        raise typer.Exit(2)


def _newest(results: Path, console: Console) -> list[Run]:
    """The newest comparable runs; the console is told what is left out.

    Raises:
        ValueError: there are none.
    """
    from fgbench.report.comparison import Workload, newest_comparable
    from fgbench.results.run import find_runs, has_requests, read_info, read_run

    def told(read: Callable[[Path], T], path: Path) -> T | None:
        """None: it is damaged, which must not keep the others from being compared."""
        try:
            return read(path)
        except ValueError as error:
            console.print(f"Left out: {error}", style="yellow", soft_wrap=True, markup=False)
            return None

    paths = [path for path in find_runs(results)[-MOST_FOLDERS:] if has_requests(path)]
    infos = [(path, info) for path in paths if (info := told(read_info, path)) is not None]
    workloads = [Workload.of(info) for _, info in infos]
    same = [path for (path, _), work in zip(infos, workloads, strict=True) if work == workloads[-1]]
    found = newest_comparable([run for path in same if (run := told(read_run, path)) is not None])
    if not found:
        raise ValueError(f"{results} holds no run with finished requests; 'fgbench run' makes one")
    if others := len(infos) - len(same):
        console.print(
            f"Left out: {others} older runs on other workloads; name folders to choose.",
            style="dim",
            soft_wrap=True,
        )
    return found


def _show(comparison: Comparison, stem: Path, console: Console, as_json: bool) -> dict[str, object]:
    """Draws the plots, prints the tables unless JSON is wanted, and gives what the JSON holds."""
    from fgbench.report.compare_table import comparison_json, comparison_tables
    from fgbench.report.plots import plot_latency_over_rate

    paths = plot_latency_over_rate(comparison, stem)
    if not as_json:
        console.print(comparison_tables(comparison))
        for path in paths:
            console.print(f"plot: {path}", soft_wrap=True, highlight=False)
        console.print()
    return comparison_json(comparison) | {"plots": [str(path) for path in paths]}


def _file_names(workloads: list[Workload]) -> list[str]:
    """One name a workload, made of what describes it; those still alike are numbered."""
    names: list[str] = []
    for workload in workloads:
        parts = [Path(workload.model).name, workload.dataset, f"n{workload.num_prompts}", f"s{workload.seed}"]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names
