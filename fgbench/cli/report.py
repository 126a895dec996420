"""``fgbench report``: one HTML file with everything about some runs, to send to a colleague."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from fgbench.cli import printing
from fgbench.metrics.slo import DEFAULT_SLO


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders, or folders that hold runs, such as a sweep's. Default: the newest runs that "
            "have the newest run's workload."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Measurements of LLM serving",
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Backend or run folder that ratios are relative to. Default: as for compare.",
            show_default=False,
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(help=f"SLO to check. Repeat the option for more SLOs. Default: {DEFAULT_SLO}."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile to compute slowdowns with.", show_default=False)
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder that holds the run folders.")] = Path("results"),
) -> None:
    """Write a report of runs: one HTML file that needs no network.

    It has what fgbench compare shows. Warnings and marks come first, then verdicts, and tables that can be
    sorted. Interactive pictures show latency over load, distributions, latency by output length, and every
    request over time. They also show what the server reported during the load: its batch, queue, KV memory
    and cache hits. The settings and the machine of each backend are at the end. Everything is in the file,
    so it can be sent by mail.

    Example: a sweep of two policies, as a report:

        fgbench sweep --backend fastgen --backend fastgen-fcfs --rates 1,2 --seeds 3
        fgbench report results/20261126-105406_sweep --out policies.html
    """
    from rich.console import Console

    from fgbench.metrics.slo import parse_slo
    from fgbench.report.chosen_runs import cost_models, named_runs, newest_runs
    from fgbench.report.comparison import compare
    from fgbench.report.objectives import Objective
    from fgbench.report.page.contents import page_of
    from fgbench.report.page.writing import write_page
    from fgbench.results.files import now
    from fgbench.results.server_samples import read_samples
    from fgengine.extras import require_package
    from fgengine.units import size

    require_package("plotly", "the report")
    console = Console()

    def say(text: str, style: str = "yellow") -> None:
        printing.say(console, text, style)

    slos = [parse_slo(text) for text in dict.fromkeys(slo or [DEFAULT_SLO])]
    chosen = named_runs(runs, say) if runs else newest_runs(results, say)
    comparisons = compare(chosen, baseline, cost_models(profile, chosen, say))
    judged = [(each, [Objective(bounds, each) for bounds in slos]) for each in comparisons]
    made = f"Made {now()[:10]} with fgbench {metadata.version('fgbench')} from {len(chosen)} runs."
    written = write_page(page_of(judged, title, read_samples), made, out)
    say(f"{out}: {size(written)}, {len(chosen)} runs", "")
