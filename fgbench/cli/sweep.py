"""``fgbench sweep``: measures several backends, rates and seeds, one run each; can be killed and resumed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgbench.cli.flags import ConfigFile, given, takes_options
from fgbench.cli.printing import say
from fgbench.spec.client import ClientSpec
from fgbench.spec.load import LoadSpec
from fgbench.spec.start import StartSpec
from fgbench.spec.sweep import Settings, SweepSpec
from fgengine.config import EngineConfig
from fgengine.settings import described

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.sweeping.folder import SweepFolder
    from fgbench.sweeping.plan import SweepPoint
    from fgbench.sweeping.prepared import Prepared
    from fgbench.sweeping.runner import Result, SweepRunner

NOT_SAVED = {"folder", "resume", "dry_run", "fail_fast", "config"}
"""Parameters that control this call only; all others are saved with the sweep."""


def _option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help)


@takes_options(without={"load": ("rate", "concurrency")})
def sweep(
    sweep: SweepSpec,
    load: LoadSpec,
    client: ClientSpec,
    server: EngineConfig,
    start: StartSpec,
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(help="With --resume: folder of the sweep to resume.", show_default=False)
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[
        bool,
        _option("Resume the sweep in FOLDER, else the newest sweep with the same options.", "--resume"),
    ] = False,
    dry_run: Annotated[bool, _option("Only print the points and their estimated time.", "--dry-run")] = False,
    fail_fast: Annotated[bool, _option("Stop at the first point that fails.", "--fail-fast")] = False,
) -> None:
    """Measure several backends at several rates, or search the highest rate at an SLO.

    Each combination of backend, rate and seed is a point. Each point is one run, and all runs are in one
    folder. You can stop a sweep at any moment, by Ctrl-C or kill -9, and resume it with --resume: finished
    points are not run again. If a point fails, the failure is saved and the sweep continues.

    Example: measure two policies at four rates; resume that sweep; compare the policies:

        fgbench sweep --backend fastgen --backend fastgen-fcfs \\
            --rates 0.5,1,1.5,2 --seeds 3
        fgbench sweep --resume results/20261124-081303_sweep
        fgbench compare results/20261124-081303_sweep

    Compare with vLLM, which the sweep starts and stops, and with any other server:

        fgbench sweep --rates 0.5,1 --backend fastgen --backend vllm-chunked
        fgbench sweep --rates 0.5,1 --backend "vllm --max-num-seqs 256" \\
            --backend "llama=command: llama-server -m model.gguf --port {port}"

    Measure a running vLLM with 1, 4 and 16 requests in flight; each point starts when vLLM is idle:

        fgbench sweep --backend vllm=http://127.0.0.1:8000 --concurrency 1,4,16

    Search the highest rate within capacity with a mean TTFT below 1 s, to within 5%:

        fgbench sweep --find-rate --slo "ttft<1" --rates 1 --seeds 3

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many errors, 4 the client was the limit,
    130 interrupted. If several points fail, the worst code is used.
    """
    from rich.console import Console

    from fgbench.cli.backend_option import backend_specs
    from fgbench.live.display import display_for
    from fgbench.sweeping.folder import resumed_settings, to_resume, unfinished_sweep
    from fgbench.sweeping.prepared import prepare

    console = Console()
    if folder is not None and not resume:
        raise ValueError(f"a folder is given without --resume: to resume that sweep, give --resume {folder}")
    chosen = given(context) - NOT_SAVED
    server_options = tuple(one.name for one in described(EngineConfig) if one.name in chosen)
    wanted = Settings(sweep=sweep, load=load, client=client, server=server, start=start, given=server_options)
    resumed = to_resume(folder, wanted, chosen) if resume else None
    settings = resumed_settings(resumed, wanted, chosen) if resumed else wanted.checked()
    prepared = prepare(settings, backend_specs(settings), display_for(console).report)
    if resumed is not None and (changed := prepared.plan.changed_since(resumed.info)):
        raise ValueError(
            f"the sweep in {resumed.path} has the same options, but something else has changed since it "
            f"started ({changed}): start a new sweep without --resume"
        )
    if dry_run:
        _print_plan(prepared, resumed, console)
        return
    sweep_folder = resumed
    if sweep_folder is None:
        if unfinished := unfinished_sweep(settings):
            _print(
                console,
                f"An unfinished sweep with these options is in {unfinished}: --resume would resume it.",
            )
        sweep_folder = create_folder(prepared)
    _run(prepared, sweep_folder, fail_fast, console)


def _print_plan(prepared: Prepared, resumed: SweepFolder | None, console: Console) -> None:
    from fgbench.sweeping.sweep_tables import plan_table

    sweep, allowed = prepared.settings.sweep, prepared.settings.load.max_error_rate

    def is_done(point: SweepPoint) -> bool:
        return resumed is not None and resumed.result(point, allowed) is not None

    points = prepared.first_points()
    console.print(plan_table([(one, prepared.expected_seconds(one), is_done(one)) for one in points]))
    if sweep.find_rate:
        done = len(resumed.info["points"]) if resumed else 0
        _print(
            console,
            f"These are the first rates of the searches for {sweep.slo} to within "
            f"{sweep.tolerance:.1%}; each backend gets at most {sweep.max_probes} rates"
            f"{f'; {done} runs are in the folder' if done else ''}.",
        )


def _run(prepared: Prepared, folder: SweepFolder, fail_fast: bool, console: Console) -> None:
    """Run the remaining points, print the results, and end the program with the worst exit code."""
    from fgbench.exit_codes import DONE, INTERRUPTED

    code = DONE
    try:
        with folder.at_work():
            prepared.prepare_backends(lambda line: _print(console, line))
            code = _measure(prepared, folder, fail_fast, console)
            folder.finish(code)
    except KeyboardInterrupt:
        _print(console, f"Interrupted. To resume: fgbench sweep --resume {shlex.quote(str(folder.path))}")
        raise typer.Exit(INTERRUPTED) from None
    _print(
        console, f"results: {folder.path}; to compare them: fgbench compare {shlex.quote(str(folder.path))}"
    )
    if folder.info["status"] != "complete":
        _print(console, f"Retry failed points: fgbench sweep --resume {shlex.quote(str(folder.path))}")
    if code != DONE:
        raise typer.Exit(code)


def _measure(prepared: Prepared, folder: SweepFolder, fail_fast: bool, console: Console) -> int:
    """Run the remaining points, print the results, and return the worst exit code."""
    from fgbench.exit_status import worst
    from fgbench.metrics.slo import parse_slo
    from fgbench.sweeping.sweep_tables import results_table, search_tables

    sweep = prepared.settings.sweep
    runner = sweep_runner(prepared, folder, console, fail_fast=fail_fast)
    if not sweep.find_rate:
        results = runner.grid(list(prepared.first_points()))
        labels = list(prepared.backends)
        console.print(results_table(sorted(results, key=lambda result: labels.index(result.point.backend))))
        say_failures(results, console)
        return worst([result.exit.code for result in results])
    slo, found = parse_slo(sweep.slo or ""), {}
    for label in prepared.backends:
        found[label] = runner.find_rate(
            label,
            prepared.search(label),
            slo,
            prepared.settings.seed_numbers,
            even_above_capacity=sweep.even_above_capacity,
        )
        if fail_fast and found[label].code:
            break
    console.print(search_tables(found, slo, sweep.seeds))
    return worst([result.code for result in found.values()])


def say_failures(results: Sequence[Result], console: Console) -> None:
    """Print why points failed, if any did."""
    for result in results:
        if result.exit.sentence:
            say(console, f"{result.point}: {result.exit.sentence}", "bold red")


def create_folder(prepared: Prepared) -> SweepFolder:
    """Create the folder of a prepared sweep, which has no points yet."""
    from fgbench.sweeping.folder import SweepFolder

    settings = prepared.settings
    folder = SweepFolder.create(settings.load.results, settings.to_json(), settings.plan, prepared.plan)
    folder.save(order=settings.order)
    return folder


def sweep_runner(
    prepared: Prepared, folder: SweepFolder, console: Console, *, fail_fast: bool = False
) -> SweepRunner:
    """Return the runner of a prepared sweep, which shows its progress on ``console``."""
    from fgbench.live.display import display_for
    from fgbench.sweeping.estimate import SweepProgress
    from fgbench.sweeping.runner import SweepRunner

    total = SweepProgress()
    return SweepRunner(
        folder,
        prepared.plan,
        prepared.backends,
        prepared.dataset,
        display_for(console, total.header),
        total,
        expected_seconds=prepared.expected_seconds,
        options=prepared.repeating_options,
        max_error_rate=prepared.settings.load.max_error_rate,
        restart=prepared.settings.sweep.restart,
        fail_fast=fail_fast,
        stop_when_saturated=prepared.settings.sweep.stop_when_saturated,
    )


def _print(console: Console, sentence: str) -> None:
    say(console, sentence)
