"""``fgbench results``: lists, shows and removes saved runs, and queries all of them in SQL."""

from __future__ import annotations

import csv
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgbench.cli.printing import say

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.report.overview import Overview
    from fgbench.results.database import Database, QueryResult

app = typer.Typer(
    add_completion=False,
    help="List, show and remove saved runs, and query them in SQL.\n\nExample: fgbench results list",
    no_args_is_help=True,
)

Root = Annotated[Path, typer.Option("--results", help="Folder that holds the run folders.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
STATUSES = ("complete", "incomplete", "interrupted", "failed", "running")


@app.command("list")
def list_runs(
    results: Root = Path("results"),
    backend: Annotated[
        str | None, typer.Option(help="List only runs of this backend; the name must match exactly.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(help=f"List only runs of this status: {', '.join(STATUSES)}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="List only runs of this model.")] = None,
    dataset: Annotated[str | None, typer.Option(help="List only runs with this dataset.")] = None,
    last: Annotated[int | None, typer.Option(help="List only this number of newest runs.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs, newest first, including runs of sweeps and killed runs.

    Example: fgbench results list --last 10 --backend fastgen-fcfs
    """
    from rich.console import Console

    from fgbench.report.overview import overview_tables, overviews

    if status is not None and status not in STATUSES:
        raise ValueError(f"there is no status {status!r}: --status must be one of {', '.join(STATUSES)}")
    console = Console(stderr=as_json)
    runs = [
        run
        for run in overviews(results, lambda sentence: _left_out(console, sentence))
        if backend in (None, run.backend)
        and status in (None, run.status)
        and model in (None, run.model)
        and dataset in (None, run.dataset)
    ]
    runs = sorted(runs, key=lambda run: run.path.name, reverse=True)[:last]
    if as_json:
        print(json.dumps([run.to_json() for run in runs], indent=2, allow_nan=False))
    elif runs:
        console.print(overview_tables(runs, results))
    else:
        filtered = " that matches" if backend or status or model or dataset else ""
        say(console, f"{results} holds no run{filtered}: make one with 'fgbench run'")


@app.command("show")
def show_run(
    run: Annotated[str, typer.Argument(help="A run folder, or the beginning of its name.")],
    results: Root = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Show a run's figures, as 'fgbench run' prints them at its end.

    The figures are computed from the run's requests. For a run that was killed,
    from the requests that had ended.

    Example: fgbench results show 20261123-081303
    """
    from rich.console import Console

    from fgbench.exit_codes import DONE
    from fgbench.exit_status import exit_status_of
    from fgbench.report.run_tables import run_table
    from fgbench.results.run import find_run, read_run, summary_of

    console = Console(stderr=as_json)
    found = read_run(find_run(results, run))
    summary = summary_of(found)
    if as_json:
        data = found.info | {"path": str(found.path), "status": found.status, "summary": summary.to_dict()}
        print(json.dumps(data, indent=2, allow_nan=False))
        return
    console.print(run_table(found.info, summary))
    say(console, f"run folder: {found.path}")
    status = exit_status_of(found.info | {"summary": summary.to_dict()}, 0.0)
    if status.code != DONE:
        say(console, status.sentence, "yellow")
    if not found.complete:
        planned = (found.info.get("workload") or {}).get("num_prompts")
        console.print(
            f"{found.status}: {len(found.records)} of {planned} requests had ended.", style="yellow"
        )


@app.command("rm")
def remove_runs(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run folders, or the beginnings of their names.")
    ] = None,
    results: Root = Path("results"),
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Remove all runs that were killed before they ended.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Remove run folders.

    Asks first. Removes only run folders, and no run that is in progress.

    Example: fgbench results rm --incomplete
    """
    from rich.console import Console

    from fgbench.results.run import check_removable, find_run, remove

    console = Console()
    if not runs and not incomplete:
        raise ValueError("no run to remove is given: name runs, or give --incomplete for all killed runs")
    folders = [find_run(results, run) for run in runs or []]
    if incomplete:
        folders += _killed(results, console)
    folders = list(dict.fromkeys(folders))
    if not folders:
        say(console, f"{results} holds no run that was killed.")
        return
    for folder in folders:
        check_removable(folder)
    for folder in folders:
        say(console, str(folder))
    if not yes and not typer.confirm(f"Remove {len(folders)} run{'s' * (len(folders) > 1)} for good?"):
        raise typer.Exit(1)
    for folder in folders:
        remove(folder)
    say(console, f"Removed {len(folders)}.")


@app.command("pack")
def pack_runs(
    runs: Annotated[list[str], typer.Argument(help="Run folders, folders of runs, or beginnings of names.")],
    results: Root = Path("results"),
    without_token_times: Annotated[
        bool,
        typer.Option(
            "--without-token-times",
            help="Drop the times of single tokens: a tenth of the bytes, but no ITL in tables.",
        ),
    ] = False,
) -> None:
    """Make complete runs small, to archive or publish them.

    They need a quarter of the bytes and have the same values. requests.jsonl
    becomes a small requests.parquet, which every verb reads. The server's log
    is removed.

    Example: pack all runs of a sweep; pack many runs as small as possible:

        fgbench results pack results/20261123-081059_sweep
        fgbench results pack --without-token-times results/20261123-081059_sweep
    """
    from rich.console import Console

    from fgbench.results.run import find_run, find_runs, pack, readable
    from fgengine.units import size

    console = Console()
    folders = [folder for run in runs for folder in find_runs(run) or [find_run(results, run)]]
    saved = readable(
        functools.partial(pack, token_times=not without_token_times),
        dict.fromkeys(folders),
        lambda sentence: _left_out(console, sentence),
    )
    say(console, f"Packed {len(saved)} run{'' if len(saved) == 1 else 's'}: {size(sum(saved))} less.")


@app.command("trace")
def write_trace(
    run: Annotated[str, typer.Argument(help="Run folder, or the beginning of its name.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("trace.json"),
    results: Root = Path("results"),
) -> None:
    """Write the requests of a run as a trace for Perfetto.

    Open the file at ui.perfetto.dev or chrome://tracing. Each request is a row:
    how long it waited for its first token, and how long it was being answered.

    Example: fgbench results trace 20261123-081059 --out trace.json
    """
    from rich.console import Console

    from fgbench.report.chrome_trace import chrome_trace
    from fgbench.results.run import find_run, read_run
    from fgengine.files import replacing

    trace = chrome_trace(read_run(find_run(results, run)))
    with replacing(out) as partial:
        partial.write_text(json.dumps(trace, separators=(",", ":")), encoding="utf-8")
    say(Console(), f"{out}: open it at ui.perfetto.dev")


@app.command("sql")
def ask_sql(
    query: Annotated[
        str | None, typer.Argument(help="A SELECT statement. Without it, the tables are listed.")
    ] = None,
    results: Root = Path("results"),
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Query all runs in SQL (DuckDB), including killed runs.

    The tables are runs and requests.

    Example: fgbench results sql "SELECT run, status, rate, ttft_mean, jct_p99
    FROM runs ORDER BY started"
    """
    from rich.console import Console

    from fgbench.results.database import Database

    if as_json and as_csv:
        raise ValueError("--json and --csv contradict each other: give only one")
    console = Console(stderr=True)
    with Database(results, lambda sentence: _left_out(console, sentence)) as database:
        if query is None:
            _show_schema(database, as_json)
        else:
            _show_answer(database.ask(query), as_json, as_csv)


def _killed(results: Path, console: Console) -> list[Path]:
    from fgbench.report.overview import overviews

    runs: list[Overview] = overviews(results, lambda sentence: _left_out(console, sentence))
    return [run.path for run in runs if run.status == "incomplete"]


def _left_out(console: Console, sentence: str) -> None:
    say(console, f"Left out: {sentence}", "yellow")


def _show_schema(database: Database, as_json: bool) -> None:
    from rich.console import Console

    from fgbench.results.database import EXAMPLE

    schema = database.schema()
    if as_json:
        print(json.dumps({table: dict(columns) for table, columns in schema.items()}, indent=2))
        return
    console = Console()
    for table, columns in schema.items():
        (count,) = database.ask(f"SELECT count(*) FROM {table}").rows[0]
        console.print(f"[bold]{table}[/], {count:,} rows", highlight=False)
        listed = ", ".join(f"{name} {kind}" for name, kind in columns)
        say(console, f"  {listed}")
    say(console, "For example:")
    say(console, f'  fgbench results sql "{EXAMPLE}"')


def _show_answer(answer: QueryResult, as_json: bool, as_csv: bool) -> None:
    from rich.console import Console

    from fgbench.report.overview import answer_table

    if as_json:
        rows = [dict(zip(answer.columns, map(_plain, row), strict=True)) for row in answer.rows]
        print(json.dumps(rows, indent=2, allow_nan=False))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer.columns)
        writer.writerows(answer.rows)
    else:
        Console().print(answer_table(answer.columns, answer.rows))


def _plain(value: Any) -> Any:
    """Return the value as plain JSON; convert what JSON cannot hold to text."""
    if isinstance(value, float) and value - value != 0.0:  # infinite or NaN
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)
