"""``fgbench compare``: runs side by side, as tables, pictures and files for other programs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.cli import printing
from fgbench.metrics.slo import DEFAULT_SLO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fgbench.report.comparison import Comparison
    from fgbench.report.objectives import Objective
    from fgbench.report.pairing import WorkloadKey

FORMATS, PICTURES = "Format", "Pictures"


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders, and folders of runs such as a sweep's; default: the newest ones on the newest "
            "run's workload."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Backend or run folder to divide by; default: fastgen-fcfs, else the first run."),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            help="Bounds to judge by, such as 'p95 jct<20' or 'ttft<500ms,normalized_latency<0.15'; give it "
            f"again for more. Default: {DEFAULT_SLO} (seconds per token), the paper's."
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Cost model for slowdowns; default: the newest of the model in the cache, if any."),
    ] = None,
    results: Annotated[Path, typer.Option(help="Where the run folders are.")] = Path("results"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=FORMATS)
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, a row a figure.", rich_help_panel=FORMATS)
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown tables.", rich_help_panel=FORMATS)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the pictures; default: RESULTS/compare.", rich_help_panel=PICTURES),
    ] = None,
    pictures: Annotated[
        bool, typer.Option(help="Write the pictures, as PNG and PDF.", rich_help_panel=PICTURES)
    ] = True,
    terminal: Annotated[
        bool,
        typer.Option("--terminal", "--plot", help="Draw them in the terminal too.", rich_help_panel=PICTURES),
    ] = False,
) -> None:
    """Compare runs: latencies, throughput, load within an SLO, ratios to a baseline, pictures.

    Runs are compared only on the same model, dataset, number of prompts and arrivals; others are shown apart.
    Runs that differ in nothing but the seed are one point: of three seeds and more it has an interval, and
    each ratio a verdict (better, worse, not distinguishable).

    Example: benchmark two policies on the same requests, then set them side by side:

        fgbench run --rate 2 --backend fastgen
        fgbench run --rate 2 --backend fastgen-fcfs
        fgbench compare --baseline fastgen-fcfs --slo 'p95 jct<20'
    """
    from rich.console import Console

    from fgbench.metrics.slo import parse_slo
    from fgbench.report.chosen_runs import cost_models, named_runs, newest_runs
    from fgbench.report.compare_table import comparison_tables
    from fgbench.report.comparison import compare as compare_runs
    from fgbench.report.comparison_data import comparison_frame
    from fgbench.report.comparison_markdown import comparison_markdown
    from fgbench.report.objectives import Objective
    from fgbench.report.pairing import differences
    from fgbench.report.pictures.contents import pictures_of
    from fgbench.report.pictures.paper import write_pictures
    from fgbench.report.pictures.terminal import drawn as drawn_as_text
    from fgengine.extras import MissingPackage, is_installed

    if as_json + as_csv + as_markdown > 1:
        raise ValueError("--json, --csv and --markdown exclude each other: choose one")
    slos = [parse_slo(text) for text in dict.fromkeys(slo or [DEFAULT_SLO])]
    for_programs = as_json or as_csv or as_markdown
    console = Console(stderr=for_programs)

    def say(text: str, style: str = "yellow") -> None:
        printing.say(console, text, style)

    chosen = named_runs(runs, say) if runs else newest_runs(results, say)
    comparisons = compare_runs(chosen, baseline, cost_models(profile, say))
    if len(comparisons) > 1:
        what = differences(comparison.workload for comparison in comparisons)
        say(
            f"These runs are on {len(comparisons)} different workloads and are not compared across them: "
            f"they differ in {what}."
        )
    judged = [(each, [Objective(one, each) for one in slos]) for each in comparisons]
    if as_json:
        _print_json(judged)
    elif as_csv:
        comparison_frame(judged).to_csv(sys.stdout, index=False, lineterminator="\n")
    elif as_markdown:
        typer.echo("\n".join(comparison_markdown(*each) for each in judged), nl=False)
    if pictures and not is_installed("matplotlib"):
        pictures = False
        say(f"No pictures: {MissingPackage('matplotlib', 'drawing them')}")
    names = _file_names([comparison.workload for comparison in comparisons])
    for (comparison, objectives), name in zip(judged, names, strict=True):
        drawn = pictures_of(comparison, objectives) if pictures or terminal else []
        if not for_programs:
            console.print(comparison_tables(comparison, objectives, console.width))
        if terminal:
            for picture in drawn:
                console.print(*drawn_as_text(picture, console.width), sep="\n")
        if pictures and drawn:
            folder = (out or results / "compare") / name
            write_pictures(drawn, folder)
            names_drawn = ", ".join(picture.name for picture in drawn)
            say(f"pictures (PNG and PDF) in {folder}: {names_drawn}")
    if not any(comparison.runs > 1 for comparison in comparisons):
        say("Nothing to compare: no two of these runs are on the same workload.", "red")
        raise typer.Exit(2)


def _print_json(judged: Iterable[tuple[Comparison, Sequence[Objective]]]) -> None:
    from fgbench.report.comparison_data import comparison_json

    data = {"comparisons": [comparison_json(*each) for each in judged]}
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def _file_names(workloads: Sequence[WorkloadKey]) -> list[str]:
    """One name a workload, made of what describes it; those still alike are numbered."""
    names: list[str] = []
    for workload in workloads:
        parts = [Path(workload.model).name, workload.dataset, f"n{workload.num_prompts}"]
        parts += [] if workload.arrivals == "poisson" else [workload.arrivals]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names
