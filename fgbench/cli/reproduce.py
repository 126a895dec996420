"""``fgbench reproduce``: the figures of the FastServe paper, with the paper's curves next to ours."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.cli.flags import Command, ConfigFile, given, takes_options
from fgbench.cli.printing import say
from fgbench.reproduction.figures import (
    FIGURES,
    SCALES,
    STAND_INS,
    Scale,
    experiment_file,
    experiments_of,
)
from fgbench.spec.client import ClientSpec
from fgbench.spec.load import LoadSpec
from fgbench.spec.start import StartSpec
from fgbench.spec.sweep import Settings, SweepSpec
from fgengine.config import EngineConfig
from fgengine.settings import described

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.reproduction.reproduced import Reproduced
    from fgbench.spec.backend import BackendSpec
    from fgbench.sweeping.runner import Result

FOLDER = "reproduction"


def reproduce(
    figures: Annotated[
        list[str], typer.Argument(help=f"Figures: {', '.join(FIGURES)}, or all.", show_default=False)
    ],
    on: Annotated[
        Scale, typer.Option("--on", help="; ".join(f"{name}: {text}" for name, text in SCALES.items()) + ".")
    ] = "simulated",
    device_spec: Annotated[
        str | None, typer.Option(help="Simulate this device instead of the experiment's.", show_default=False)
    ] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option(help="Requests of each point, instead of the paper's.", min=1, show_default=False),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Seeds of each point, instead of the experiment's.", min=1, show_default=False),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    again: Annotated[
        bool, typer.Option("--again", help="Measure finished points again, in new folders.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the experiments and their points.")
    ] = False,
) -> None:
    """Reproduce figures of the FastServe paper, next to the published curves.

    Each figure needs one or more experiments, which are sweeps. Finished
    experiments are not measured again, and an interrupted one continues where it
    ended. Then the rates at the paper's limit of latency are printed next to the
    paper's, the largest deviations first, and pictures with both curves are
    saved. What is missing, such as vLLM or a dataset, is named and left out. The
    same command measures it once it is there.

    Example: figure 11 by simulation, in a few minutes; all figures; figure 11 on
    this machine:

        fgbench reproduce fig11
        fgbench reproduce all
        fgbench reproduce fig11 --on laptop

    The experiments are files for the option --config of fgbench sweep. --dry-run
    lists them:

        fgbench reproduce fig11 --dry-run

    Exit codes: as of fgbench sweep.
    """
    from rich.console import Console

    from fgbench.backends.named import why_missing
    from fgbench.cli.backend_option import backend_specs
    from fgbench.exit_codes import DONE, FAILED, INTERRUPTED
    from fgbench.reproduction.reproduced import reproduced

    console = Console()
    names = list(FIGURES) if "all" in figures else list(dict.fromkeys(figures))
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(f"there is no figure {unknown[0]}: use {', '.join(FIGURES)}, or all")
    if device_spec is not None and on != "simulated":
        raise ValueError(f"--device-spec is for --on simulated, not for {on}: leave it out")
    changes = {"--device-spec": device_spec, "--num-prompts": num_prompts, "--seeds": seeds}
    arguments = [str(word) for flag, value in changes.items() if value is not None for word in (flag, value)]
    folder = results / FOLDER / on
    arguments += ["--results", str(folder)]
    measured: dict[str, list[Result]] = {}
    left_out: list[str] = []
    code = DONE
    for experiment in experiments_of(names):
        path = experiment_file(experiment, on)
        if path is None:
            left_out.append(f"{experiment}: there is no experiment {experiment} on {on}")
            continue
        try:
            settings = settings_of(path, arguments)
            specs = backend_specs(settings)
            missing = {label: why for label, spec in specs.items() if (why := why_missing(spec))}
            for why in dict.fromkeys(missing.values()):
                labels = ", ".join(label for label, reason in missing.items() if reason == why)
                left_out.append(f"{labels} in {experiment}: {why}")
            if len(missing) == len(specs):
                continue
            if dry_run:
                _describe(experiment, settings, len(specs) - len(missing), path, console)
                continue
            measured[experiment], one_code = _measured(experiment, settings, specs, missing, again, console)
        except ValueError as error:
            left_out.append(f"{experiment}: {error}")
            continue
        except KeyboardInterrupt:
            say(console, "Interrupted. The same command continues.")
            raise typer.Exit(INTERRUPTED) from None
        code = max(code, one_code)
    if not dry_run:
        found = [reproduced(name, measured, on) for name in names]
        _report([one for one in found if one.labels], folder, console)
    for sentence in left_out:
        say(console, f"Left out: {sentence}", "yellow")
    if left_out and not measured and not dry_run:
        code = FAILED
    if code != DONE:
        raise typer.Exit(code)


def settings_of(path: Path, arguments: Sequence[str] = ()) -> Settings:
    """Return the sweep that a configuration file describes, with further options of ``fgbench sweep``.

    Raises ValueError if an option is unknown or out of its bounds.
    """
    found: list[Settings] = []

    @takes_options(without={"load": ("rate", "concurrency")})
    def experiment(
        sweep: SweepSpec,
        load: LoadSpec,
        client: ClientSpec,
        server: EngineConfig,
        start: StartSpec,
        context: typer.Context,
        config: ConfigFile = None,
    ) -> None:
        chosen = given(context)
        options = tuple(one.name for one in described(EngineConfig) if one.name in chosen)
        found.append(
            Settings(sweep=sweep, load=load, client=client, server=server, start=start, given=options)
        )

    app = typer.Typer(add_completion=False)
    app.command("sweep", cls=Command)(experiment)
    typer.main.get_command(app).main(
        ["--config", str(path), *arguments], prog_name="fgbench sweep", standalone_mode=False
    )
    return found[0].checked()


def _describe(experiment: str, settings: Settings, backends: int, path: Path, console: Console) -> None:
    points = backends * len(settings.levels) * len(settings.seed_numbers)
    say(console, f"{experiment}: {points} points of {settings.load.num_prompts} requests ({path})")


def _measured(
    experiment: str,
    settings: Settings,
    specs: dict[str, BackendSpec],
    without: Collection[str],
    again: bool,
    console: Console,
) -> tuple[list[Result], int]:
    """Run the points of an experiment that have no result; return all results and the worst exit code.

    The backends ``without`` cannot be started. If they can later, the same sweep measures them.
    """
    from fgbench.cli.sweep import create_folder, say_failures, sweep_runner
    from fgbench.exit_status import worst
    from fgbench.live.display import display_for
    from fgbench.sweeping.folder import newest_sweep
    from fgbench.sweeping.prepared import prepare

    say(console, f"experiment {experiment}", "bold")
    prepared = prepare(settings, specs, display_for(console).report, without=without)
    folder = None if again else newest_sweep(settings)
    if folder is None or prepared.plan.changed_since(folder.info):
        folder = create_folder(prepared)
    with folder.at_work():
        folder.describe(prepared.plan)
        prepared.prepare_backends(lambda line: say(console, line))
        found = sweep_runner(prepared, folder, console).grid(list(prepared.first_points()))
        code = worst([result.exit.code for result in found])
        folder.finish(code)
    say_failures(found, console)
    return found, code


def _report(found: Sequence[Reproduced], folder: Path, console: Console) -> None:
    """Print the deviations of figures, and save them with the pictures."""
    from fgbench.report.marks import ANALYTIC
    from fgbench.report.pictures.paper import write_pictures
    from fgbench.reproduction.tables import attainment_table, deviation_table
    from fgbench.results.files import write_json

    for one in found:
        if one.deviations:
            console.print(deviation_table(f"{one.name}: {one.figure.title}", one.deviations))
        for panel, curves in one.attained.items():
            console.print(attainment_table(panel, curves))
        for remark in one.figure.remarks:
            say(console, f"{one.name}: {remark}", "yellow")
        path = folder / f"{one.name}.json"
        write_json(path, {"figure": one.name, "deviations": [each.to_json() for each in one.deviations]})
    if devices := sorted({device for one in found for device in one.devices}):
        say(console, ANALYTIC.note(devices), "yellow")
    for label in sorted({label for one in found for label in one.labels}):
        if label in STAND_INS:
            say(console, f"{label}: {STAND_INS[label]}.", "yellow")
    for path in write_pictures([each for one in found for each in one.pictures], folder / "pictures"):
        if path.suffix == ".png":
            say(console, f"picture: {path}")
