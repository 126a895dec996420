"""``fgbench sweep``: backends, rates and seeds, one run each, that can be killed and go on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgbench.cli.flags import ConfigFile, given, takes_options
from fgbench.cli.printing import say
from fgbench.spec.load import ClientSpec, LoadSpec
from fgbench.spec.sweep import Settings, SweepSpec
from fgengine.config import EngineConfig

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.sweeping.folder import SweepFolder
    from fgbench.sweeping.plan import SweepPoint
    from fgbench.sweeping.prepared import Prepared

HOW_TO_RUN = {"folder", "resume", "dry_run", "fail_fast", "config"}
"""Parameters that say how to run a sweep; all others say what it is."""


def _option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help)


@takes_options(without={"load": ("rate", "concurrency")})
def sweep(
    sweep: SweepSpec,
    load: LoadSpec,
    client: ClientSpec,
    server: EngineConfig,
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(help="With --resume: the sweep to go on with.", show_default=False)
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[
        bool,
        _option("Go on with FOLDER, or with the newest sweep of the same options.", "--resume"),
    ] = False,
    dry_run: Annotated[
        bool, _option("Print the points and the time they take, no more.", "--dry-run")
    ] = False,
    fail_fast: Annotated[bool, _option("Stop at the first point that goes wrong.", "--fail-fast")] = False,
) -> None:
    """Measure backends at several rates or concurrencies and seeds, each point a run, all in one folder.

    Killed at any moment, by Ctrl-C or kill -9, it goes on with --resume: points that are done are not run
    again. A point that goes wrong is recorded, and the others are run.

    Example: two policies at four rates; the same, gone on with; then how they compare:

        fgbench sweep --backend fastgen --backend fastgen-fcfs --rates 0.5,1,1.5,2 --seeds 3
        fgbench sweep --resume results/20261124-081303_sweep
        fgbench compare results/20261124-081303_sweep

    A vLLM that runs already, with 1, 4 and 16 requests in flight; each point begins once it is idle:

        fgbench sweep --backend vllm=http://127.0.0.1:8000 --concurrency 1,4,16 --num-prompts 100

    Up to which rate a mean of 0.3 s a token is kept, within 5 %:

        fgbench sweep --backend fastgen --find-rate --slo "normalized_latency<0.3" --rates 1

    Exit codes: that of the worst point (0 done, 1 failed, 3 too many errors, 4 the client was the limit);
    2 wrong usage; 130 interrupted.
    """
    from rich.console import Console

    from fgbench.cli.backend_option import backend_specs
    from fgbench.live.display import display_for
    from fgbench.sweeping.folder import SweepFolder, resumed_settings, to_resume, unfinished_sweep
    from fgbench.sweeping.prepared import prepare

    wanted = Settings(sweep=sweep, load=load, client=client, server=server)
    console = Console()
    if folder is not None and not resume:
        raise ValueError(f"to go on with the sweep in {folder} say --resume {folder}")
    chosen = given(context) - HOW_TO_RUN
    kept = to_resume(folder, wanted, chosen) if resume else None
    settings = resumed_settings(kept, wanted, chosen) if kept else wanted.checked()
    prepared = prepare(settings, backend_specs(settings), display_for(console).report)
    if kept is not None and (changed := prepared.plan.changed_since(kept.info)):
        raise ValueError(
            f"the sweep in {kept.path} was begun with the same options, but since then something else has "
            f"changed: {changed}. Start a new sweep without --resume"
        )
    if dry_run:
        _print_plan(prepared, kept, console)
        return
    if kept is None:
        if unfinished := unfinished_sweep(settings):
            _print(
                console,
                f"An unfinished sweep of these options is in {unfinished}: --resume would go on with it.",
            )
        kept = SweepFolder.create(settings.load.results, settings.to_json(), settings.plan, prepared.plan)
    _run(prepared, kept, fail_fast, console)


def _print_plan(prepared: Prepared, kept: SweepFolder | None, console: Console) -> None:
    from fgbench.sweeping.sweep_tables import plan_table

    sweep, allowed = prepared.settings.sweep, prepared.settings.load.max_error_rate

    def is_done(point: SweepPoint) -> bool:
        return kept is not None and kept.result(point, allowed) is not None

    points = prepared.first_points()
    console.print(plan_table([(one, prepared.expected_seconds(one), is_done(one)) for one in points]))
    if sweep.find_rate:
        done = len(kept.info["points"]) if kept else 0
        _print(
            console,
            f"These are the first probes of searches for {sweep.slo} within "
            f"{sweep.tolerance:.1%}, of at most {sweep.max_probes} rates for each backend"
            f"{f'; {done} runs are in the folder' if done else ''}.",
        )


def _run(prepared: Prepared, kept: SweepFolder, fail_fast: bool, console: Console) -> None:
    """Runs what is left, prints the results and ends with the worst code."""
    from fgbench.exit_codes import DONE, INTERRUPTED

    code = DONE
    try:
        with kept.at_work():
            prepared.prepare_backends(lambda line: _print(console, line))
            code = _measure(prepared, kept, fail_fast, console)
            kept.finish(code)
    except KeyboardInterrupt:
        _print(console, f"Interrupted. Go on with: fgbench sweep --resume {shlex.quote(str(kept.path))}")
        raise typer.Exit(INTERRUPTED) from None
    _print(console, f"results: {kept.path}; to compare them: fgbench compare {shlex.quote(str(kept.path))}")
    if kept.info["status"] != "complete":
        _print(console, f"Retry failed points: fgbench sweep --resume {shlex.quote(str(kept.path))}")
    if code != DONE:
        raise typer.Exit(code)


def _measure(prepared: Prepared, kept: SweepFolder, fail_fast: bool, console: Console) -> int:
    """Runs what is left, prints the results, and returns the worst exit code."""
    from fgbench.exit_status import worst
    from fgbench.live.display import display_for
    from fgbench.metrics.slo import parse_slo
    from fgbench.sweeping.estimate import SweepProgress
    from fgbench.sweeping.runner import RateSearchResult, SweepRunner
    from fgbench.sweeping.sweep_tables import results_table, search_tables

    total, sweep = SweepProgress(), prepared.settings.sweep
    runner = SweepRunner(
        kept,
        prepared.plan,
        prepared.backends,
        prepared.dataset,
        display_for(console, total.header),
        total,
        expected_seconds=prepared.expected_seconds,
        options=prepared.repeating_options,
        max_error_rate=prepared.settings.load.max_error_rate,
        restart=sweep.restart,
        fail_fast=fail_fast,
    )
    if not sweep.find_rate:
        results = runner.grid(list(prepared.first_points()))
        console.print(results_table(results))
        for result in results:
            if result.exit.sentence:
                say(console, f"{result.point}: {result.exit.sentence}", "bold red")
        return worst([result.exit.code for result in results])
    slo, found = parse_slo(sweep.slo or ""), dict[str, RateSearchResult]()
    for label in prepared.backends:
        found[label] = runner.find_rate(label, prepared.search(label), slo, prepared.settings.seed_numbers)
        if fail_fast and found[label].code:
            break
    console.print(search_tables(found, slo, sweep.seeds))
    return worst([one.code for one in found.values()])


def _print(console: Console, sentence: str) -> None:
    say(console, sentence)
