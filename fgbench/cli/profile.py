"""``fgbench profile``: measure a model's step times on this machine, for the policies that need them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.cli.printing import say
from fgengine.config import Device, Dtype, EngineConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fgengine.execution.runner import TorchRunner
    from fgengine.profile import Profile
    from fgengine.profile_grid import Grid, TimedStep

DEFAULTS = EngineConfig()
POOR_FIT = 0.15
"""Median error on held-out points from which the fit is said to be poor."""


def profile(
    model: Annotated[str, typer.Option(help="A catalog name, or a Hugging Face folder.")] = DEFAULTS.model,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = DEFAULTS.device,
    dtype: Annotated[Dtype, typer.Option(help="Number format of weights and KV.")] = DEFAULTS.dtype,
    block_size: Annotated[int, typer.Option(help="Tokens in a KV block.")] = DEFAULTS.block_size,
    use_dummy_weights: Annotated[
        bool, typer.Option("--use-dummy-weights", "--dummy-weights", help="Random weights: the same speed.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: where 'fgbench serve' looks for it.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points: seconds, not minutes.")] = False,
    patience: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for other programs to leave the machine alone.")
    ] = 60.0,
    even_if_busy: Annotated[
        bool, typer.Option("--even-if-busy", help="After that, measure and write the file all the same.")
    ] = False,
) -> None:
    """Measure step times over prefill length x decode batch x context, and fit the cost model.

    A third of the points is kept from the fit to judge it by. What beats the machine's own memory
    bandwidth and arithmetic is refused. Other programs make steps seem slow, and a profile steers all later
    starts and simulations: so it waits until the machine is quiet, and writes nothing if it does not stay so.

    Example: a profile of the default model, then a server that schedules by it:

        fgbench profile --out smollm2.json
        fgbench serve --policy sj-mlfq --profile smollm2.json
    """
    from rich.console import Console

    from fgengine import profile_cache, profile_grid
    from fgengine.execution.device import pick_device

    console = Console()

    def report(line: str) -> None:
        say(console, line)

    on_gpu = pick_device(device).type == "cuda"
    grid = profile_grid.QUICK if quick else profile_grid.GPU if on_gpu else profile_grid.FULL
    config = EngineConfig(
        model=model,
        device=device,
        dtype=dtype,
        block_size=block_size,
        use_dummy_weights=use_dummy_weights,
        max_batch_size=max(grid.decode),
        swap_space=0,  # copies are measured in a host pool of their own; pinning a large one takes long
    )
    with console.status(f"loading {model}"):
        runner = _create_runner(config, console)
    path = out or profile_cache.default_path(model, runner)
    try:
        with profile_cache.one_at_a_time(report):
            _await_quiet(patience, even_if_busy, console)
            measured = _measure(model, runner, grid, console)
            busy = measured.conditions is not None and measured.conditions.busy
            written = (not busy or even_if_busy) and _write(measured, out, path, report)
    finally:
        runner.close()
    console.print(held_out_table(measured))
    _print_figures(measured, runner, console)
    if busy and not even_if_busy:
        assert measured.conditions is not None
        say(
            console,
            f"other programs took {measured.conditions.other_cores:.2f} cores meanwhile, so this is not the "
            "machine's own speed and nothing was written; stop them, or use --even-if-busy",
            "bold red",
        )
        raise typer.Exit(1)
    if written:
        report(f"written: {path}")


def _await_quiet(patience: float, even_if_busy: bool, console: Console) -> None:
    """Ends the verb where others do not leave the machine alone within so many seconds."""
    from fgengine.machine_load import wait_until_quiet

    with console.status("looking for other programs that compute") as status:
        load = wait_until_quiet(patience, lambda line: status.update(f"waiting for a quiet machine: {line}"))
    if not load.is_busy:
        return
    if not even_if_busy:
        say(
            console,
            f"{load.describe()}: a profile measured now would be wrong; stop them, or use --even-if-busy",
            "bold red",
        )
        raise typer.Exit(1)
    say(console, f"{load.describe()}: the profile will say so", "yellow")


def _write(profile: Profile, out: Path | None, path: Path, say: Callable[[str], None]) -> bool:
    """A file asked for must be written; one for the cache may fail."""
    from fgengine.profile_cache import keep_profile

    if out is None:
        return keep_profile(profile, path, say)
    profile.save(out)
    return True


def _create_runner(config: EngineConfig, console: Console) -> TorchRunner:
    """Weights that are not here are made up: a step takes as long with them."""
    from fgengine.execution.create import create_runner
    from fgengine.model import catalog, store

    shape = catalog.shape_of(config.model)
    folder = None if config.use_dummy_weights else store.folder_of(config.model)
    if folder is None and not config.use_dummy_weights:
        say(
            console,
            f"the weights of {config.model} are not here: measuring with random ones, at the same speed",
        )
    return create_runner(config, shape, folder)


def _measure(model: str, runner: TorchRunner, grid: Grid, console: Console) -> Profile:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from fgengine import profiler

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("what the machine can do at best", total=None)

        def show(done: int, total: int, point: TimedStep) -> None:
            text = f"{describe(point)}: {point.seconds * 1e3:.3g} ms"
            bars.update(task, completed=done, total=total, description=text)

        return profiler.make_profile(model, runner, grid, show)


def describe(point: TimedStep) -> str:
    parts = []
    if point.prefill_tokens:
        behind = f" behind {point.prefill_start}" if point.prefill_start else ""
        parts.append(f"prefill {point.prefill_tokens}{behind}")
    if point.decode_requests:
        parts.append(f"decode {point.decode_requests} x {point.context_tokens}")
    return " + ".join(parts)


def held_out_table(profile: Profile) -> Table:
    from rich.table import Table

    from fgengine.units import seconds

    table = Table(title="points kept from the fit", title_justify="left")
    table.add_column("step")
    for name in ("measured", "fitted", "error", "repeats"):
        table.add_column(name, justify="right")
    for point in profile.points:
        if point.held_out:
            fitted = profile.cost.step_seconds(point.shape)
            error = fitted / point.seconds - 1.0
            table.add_row(
                describe(point), seconds(point.seconds), seconds(fitted), f"{error:+.0%}", str(point.repeats)
            )
    return table


def _print_figures(profile: Profile, runner: TorchRunner, console: Console) -> None:
    from fgengine.physics import TOLERANCE
    from fgengine.units import seconds, size

    closest, times = profile.closest_to_floor(runner.shape)
    cost = profile.cost
    say(console, f"{profile.model} on {profile.device}, {profile.dtype}")
    poor = " (poor: take its predictions as rough)" if profile.median_error > POOR_FIT else ""
    say(console, f"median error on held-out points: {profile.median_error:.0%}{poor}")
    say(
        console,
        f"shortest iteration {seconds(cost.min_iteration_seconds)}; prompts of 64, 256, 1024 tokens: "
        + ", ".join(seconds(cost.prefill_seconds(n)) for n in (64, 256, 1024))
        + f"; KV copies {size(cost.copy_bytes_per_second)}/s",
    )
    slack = "" if times >= 1.0 else f", within the tolerance of {TOLERANCE}"
    say(
        console,
        f"physics: {size(profile.ceilings.bytes_per_second)}/s read and "
        f"{profile.ceilings.flops_per_second / 1e12:.3g} TFLOP/s measured here; no step beats them: "
        f"the closest, {describe(closest)}, takes {times:.2g} x its floor{slack}",
    )
