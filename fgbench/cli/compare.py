"""``fgbench compare``: compares runs in tables, pictures, JSON and CSV."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from fgbench.cli import printing
from fgbench.metrics.slo import DEFAULT_SLO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fgbench.report.comparison import Comparison
    from fgbench.report.objectives import Objective
    from fgbench.report.pairing import WorkloadKey
    from fgbench.report.pictures.paper import PictureFormat

FORMATS, PICTURES = "Format", "Pictures"


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders, or folders that hold runs, such as a sweep's. Default: the newest runs that "
            "have the newest run's workload."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Backend or run folder that ratios are relative to. Default: fastgen-fcfs, else "
            "simulated-fcfs, else the first run."
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            help="SLO to check, such as 'p95 jct<20' or 'ttft<500ms,normalized_latency<0.15'. Repeat the "
            f"option for more SLOs. Default: {DEFAULT_SLO} (seconds per token), as in the paper."
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Profile to compute slowdowns with. Default: the model's newest in the cache, if any."
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="For CI: end with exit code 5 if a backend breaks this limit, or if it cannot be checked. "
            "'p95 jct > 1.05' is the ratio to the baseline, 'ttft > 500ms' the figure itself. Repeat the "
            "option for more limits.",
            show_default=False,
        ),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder that holds the run folders.")] = Path("results"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=FORMATS)
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, one row per figure.", rich_help_panel=FORMATS)
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown tables.", rich_help_panel=FORMATS)
    ] = False,
    as_latex: Annotated[
        bool, typer.Option("--latex", help="Print LaTeX tables (booktabs).", rich_help_panel=FORMATS)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the pictures. Default: RESULTS/compare.", rich_help_panel=PICTURES),
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Write the pictures.", rich_help_panel=PICTURES)] = True,
    formats: Annotated[
        str,
        typer.Option("--format", help="Kinds of picture files: png, pdf and svg.", rich_help_panel=PICTURES),
    ] = "png,pdf",
    width: Annotated[
        float | None,
        typer.Option(
            help="Width of the pictures in inches, such as 3.3 for a paper's column. Their text then has the "
            "size of a caption, and they have no title. Default: as wide as the panels need.",
            min=1.5,
            max=100.0,
            rich_help_panel=PICTURES,
        ),
    ] = None,
    terminal: Annotated[
        bool,
        typer.Option(
            "--terminal", "--plot", help="Also draw the pictures in the terminal.", rich_help_panel=PICTURES
        ),
    ] = False,
) -> None:
    """Compare runs: latency, throughput, SLO attainment, ratios to a baseline.

    Prints tables and writes pictures. Only runs with the same model, dataset,
    number of prompts and arrivals are compared. Other runs get tables of their
    own. Runs that differ only in the seed form one point. With three or more
    seeds, the point has a confidence interval and each ratio has a verdict:
    better, worse, or not distinguishable.

    Example: measure two policies with the same requests, then compare them:

        fgbench run --rate 2 --backend fastgen
        fgbench run --rate 2 --backend fastgen-fcfs
        fgbench compare --baseline fastgen-fcfs --slo 'p95 jct<20'

    In CI, fail if the tail grew by more than 5%; for a paper's column, draw
    vector pictures of its width:

        fgbench compare results/sweep --baseline main --fail-if 'p95 jct > 1.05'
        fgbench compare --width 3.3 --format pdf,svg

    Exit codes: 0 done, 2 wrong usage or nothing to compare, 5 a limit of
    --fail-if is broken, or could not be checked.
    """
    from rich.console import Console

    from fgbench.exit_codes import LIMIT_BROKEN
    from fgbench.metrics.slo import parse_slo
    from fgbench.report.chosen_runs import cost_models, named_runs, newest_runs
    from fgbench.report.compare_table import comparison_tables
    from fgbench.report.comparison import compare as compare_runs
    from fgbench.report.comparison_data import comparison_frame
    from fgbench.report.comparison_latex import comparison_latex
    from fgbench.report.comparison_markdown import comparison_markdown
    from fgbench.report.limits import parse_limit
    from fgbench.report.objectives import Objective
    from fgbench.report.pairing import differences
    from fgbench.report.pictures.contents import pictures_of
    from fgbench.report.pictures.paper import write_pictures
    from fgbench.report.pictures.terminal import drawn as drawn_as_text
    from fgengine.extras import MissingPackage, is_installed

    if as_json + as_csv + as_markdown + as_latex > 1:
        raise ValueError("--json, --csv, --markdown and --latex exclude each other: give only one")
    slos = [parse_slo(text) for text in dict.fromkeys(slo or [DEFAULT_SLO])]
    machine_readable = as_json or as_csv or as_markdown or as_latex
    console = Console(stderr=machine_readable)

    def say(text: str, style: str = "yellow") -> None:
        printing.say(console, text, style)

    kinds = _picture_formats(formats)
    limits = [parse_limit(text) for text in fail_if or ()]
    chosen = named_runs(runs, say) if runs else newest_runs(results, say)
    comparisons = compare_runs(chosen, baseline, cost_models(profile, chosen, say))
    if len(comparisons) > 1:
        differing = differences(comparison.workload for comparison in comparisons)
        say(
            f"These runs have {len(comparisons)} different workloads. Only runs with the same workload are "
            f"compared. The workloads differ in {differing}."
        )
    judged = [(each, [Objective(bounds, each) for bounds in slos]) for each in comparisons]
    if as_json:
        _print_json(judged)
    elif as_csv:
        comparison_frame(judged).to_csv(sys.stdout, index=False, lineterminator="\n")
    elif as_markdown:
        typer.echo("\n".join(comparison_markdown(*each) for each in judged), nl=False)
    elif as_latex:
        typer.echo("\n".join(comparison_latex(each) for each in comparisons), nl=False)
    if pictures and not is_installed("matplotlib"):
        pictures = False
        say(f"No pictures: {MissingPackage('matplotlib', 'drawing them')}")
    names = _file_names([comparison.workload for comparison in comparisons])
    for (comparison, objectives), name in zip(judged, names, strict=True):
        drawn = pictures_of(comparison, objectives) if pictures or terminal else []
        if not machine_readable:
            console.print(comparison_tables(comparison, objectives, console.width))
        if terminal:
            for picture in drawn:
                console.print(*drawn_as_text(picture, console.width), sep="\n")
        if pictures and drawn:
            folder = (out or results / "compare") / name
            write_pictures(drawn, folder, formats=kinds, width=width)
            names_drawn = ", ".join(picture.name for picture in drawn)
            say(f"pictures ({', '.join(kinds).upper()}) in {folder}: {names_drawn}")
    broken = [sentence for each in comparisons for limit in limits for sentence in limit.broken_by(each)]
    for sentence in broken:
        say(f"--fail-if: {sentence}", "bold red")
    if limits and not broken:
        say("--fail-if: no limit is broken.")
    if broken:
        raise typer.Exit(LIMIT_BROKEN)
    if not any(comparison.runs > 1 for comparison in comparisons):
        say("Nothing to compare: no two of these runs have the same workload.", "red")
        raise typer.Exit(2)


def _picture_formats(text: str) -> list[PictureFormat]:
    """Parse ``--format``; raises ValueError if it names another kind of file."""
    from fgbench.report.pictures.paper import PictureFormat

    found = [word.strip().lower() for word in text.split(",") if word.strip()]
    known = get_args(PictureFormat)
    for word in found:
        if word not in known:
            raise ValueError(f"--format {word}: use {', '.join(known)}, or several of them with commas")
    return cast("list[PictureFormat]", list(dict.fromkeys(found)))


def _print_json(judged: Iterable[tuple[Comparison, Sequence[Objective]]]) -> None:
    from fgbench.report.comparison_data import comparison_json

    data = {"comparisons": [comparison_json(*each) for each in judged]}
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def _file_names(workloads: Sequence[WorkloadKey]) -> list[str]:
    """Return one distinct file name for each workload: its model, dataset, prompts and arrivals."""
    names: list[str] = []
    for workload in workloads:
        parts = [Path(workload.model).name, workload.dataset, f"n{workload.num_prompts}"]
        parts += [] if workload.arrivals == "poisson" else [workload.arrivals]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names
