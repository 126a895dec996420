"""``fgbench profile``: measures a model's step times on this machine, for the policies that need them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgbench.cli.flags import given
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
"""Median relative error on held-out points above which the fit is reported as poor."""


MEASURED_ONLY = ("device", "block_size", "use_dummy_weights", "quick", "patience", "even_if_busy")
"""Options that have no effect on an analytic profile."""


def _device_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="A device that is not here")


def profile(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A catalog name, or a Hugging Face folder.")] = DEFAULTS.model,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = DEFAULTS.device,
    dtype: Annotated[Dtype, typer.Option(help="Number format of weights and KV.")] = DEFAULTS.dtype,
    block_size: Annotated[int, typer.Option(help="Tokens per KV block.")] = DEFAULTS.block_size,
    use_dummy_weights: Annotated[
        bool, typer.Option("--use-dummy-weights", "--dummy-weights", help="Random weights: the same speed.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: the file in which 'fgbench serve' looks.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure fewer points: seconds instead of minutes.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait until other programs stop using the machine.")
    ] = 60.0,
    even_if_busy: Annotated[
        bool, typer.Option("--even-if-busy", help="Then measure and write the file even on a busy machine.")
    ] = False,
    device_spec: Annotated[
        str | None,
        _device_option(
            "Compute the profile of a device that is not here from its published figures: "
            "a100-40gb, a100-80gb, h100-sxm, h200, l40s, rtx4090 or mi300x.",
            "--device-spec",
        ),
    ] = None,
    bandwidth: Annotated[
        str | None, _device_option("Your own device: memory bandwidth, such as 1555GB/s.", "--bandwidth")
    ] = None,
    flops: Annotated[
        str | None,
        _device_option("Dense operations per second in the model's format, such as 312TFLOP/s.", "--flops"),
    ] = None,
    link: Annotated[
        str | None,
        _device_option("Bandwidth to the host in one direction, such as 32GB/s.", "--link"),
    ] = None,
    memory: Annotated[str | None, _device_option("Size of its memory, such as 40GiB.", "--memory")] = None,
    step_overhead_ms: Annotated[
        float | None,
        typer.Option(
            "--step-overhead-ms",
            help="Fixed milliseconds of each step, besides reading and arithmetic; default: 0.3, and 0.03 "
            "for each layer.",
            min=0.0,
            max=1000.0,
            rich_help_panel="A device that is not here",
        ),
    ] = None,
) -> None:
    """Measure how long a model's steps take on this machine; fit a cost model.

    It measures steps with different prefill lengths, decode batches and context
    lengths. It holds out a third of the points from the fit, to check the fit.
    It refuses times that this machine's memory bandwidth and arithmetic make
    impossible. Other programs slow the steps down, and a wrong profile affects
    all later starts and simulations. So it waits until the machine is quiet. It
    writes nothing if other programs disturb the measurement.

    Example: profile the default model, then start a server that uses the
    profile:

        fgbench profile --out smollm2.json
        fgbench serve --policy sj-mlfq --profile smollm2.json

    With --device-spec, or with figures of your own, nothing is measured: a
    roofline of the published figures predicts the steps of hardware that is not
    here. simulate and serve take the same --device-spec, or the written file.

    Example: predict OPT-13B on an A100, then on a device of your own:

        fgbench profile --device-spec a100-40gb --model opt-13b
        fgbench profile --memory 64GiB --bandwidth 2TB/s --flops 400TFLOP/s --link 64GB/s --out my.json
    """
    from rich.console import Console

    console = Console()
    figures = {"bandwidth": bandwidth, "flops": flops, "link": link, "memory": memory}
    if device_spec is not None or any(figures.values()):
        from fgbench.cli.analytic import write_analytic

        for name in sorted(given(context) & set(MEASURED_ONLY)):
            raise ValueError(
                f"--{name.replace('_', '-')} is for measured profiles, but a device that is not here cannot "
                "be measured: leave it out"
            )
        write_analytic(model, dtype, device_spec, figures, step_overhead_ms, out, console)
        return
    if step_overhead_ms is not None:
        raise ValueError(
            "--step-overhead-ms is for a device that is not here: add --device-spec, or leave it out"
        )

    from fgengine import profile_cache, profile_grid
    from fgengine.execution.device import pick_device

    def report(line: str) -> None:
        say(console, line)

    grid = profile_grid.grid_for(pick_device(device).type, quick=quick)
    config = EngineConfig(
        model=model,
        device=device,
        dtype=dtype,
        block_size=block_size,
        use_dummy_weights=use_dummy_weights,
        max_batch_size=max(grid.decode),
        swap_space=0,  # the profiler times KV copies in its own host pool; pinning a large pool takes long
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
            f"other programs used {measured.conditions.other_cores:.2f} cores during the measurement, so the "
            "times are too long and nothing was written: stop them, or use --even-if-busy",
            "bold red",
        )
        raise typer.Exit(1)
    if written:
        report(f"written: {path}")


def _await_quiet(patience: float, even_if_busy: bool, console: Console) -> None:
    """Wait up to ``patience`` seconds for a quiet machine. End the verb if it remains busy."""
    from fgengine.machine_load import wait_until_quiet

    with console.status("looking for other programs that compute") as status:
        load = wait_until_quiet(patience, lambda line: status.update(f"waiting for a quiet machine: {line}"))
    if not load.is_busy:
        return
    if not even_if_busy:
        say(
            console,
            f"{load.describe()}; a profile measured now would be wrong: stop them, or use --even-if-busy",
            "bold red",
        )
        raise typer.Exit(1)
    say(console, f"{load.describe()}; the profile will record this", "yellow")


def _write(profile: Profile, out: Path | None, path: Path, say: Callable[[str], None]) -> bool:
    """Write the profile to ``out``, else to the cache. Return False if the cache cannot be written."""
    from fgengine.profile_cache import keep_profile

    if out is None:
        return keep_profile(profile, path, say)
    profile.save(out)
    return True


def _create_runner(config: EngineConfig, console: Console) -> TorchRunner:
    """Load the model, with random weights if its weights are not downloaded: steps take equally long."""
    from fgengine.execution.create import create_runner
    from fgengine.model import catalog, store

    shape = catalog.shape_of(config.model)
    folder = None if config.use_dummy_weights else store.folder_of(config.model)
    if folder is None and not config.use_dummy_weights:
        say(
            console,
            f"the weights of {config.model} are not downloaded: measuring with random weights, which are as "
            "fast",
        )
    return create_runner(config, shape, folder)


def _measure(model: str, runner: TorchRunner, grid: Grid, console: Console) -> Profile:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from fgengine import profiler

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("the machine's memory bandwidth and arithmetic", total=None)

        def show(done: int, total: int, point: TimedStep) -> None:
            text = f"{describe(point)}: {point.seconds * 1e3:.3g} ms"
            bars.update(task, completed=done, total=total, description=text)

        return profiler.make_profile(model, runner, grid, show)


def describe(point: TimedStep) -> str:
    """Return a step's shape as text, such as ``prefill 512 after 1024 + decode 8 x 256``."""
    parts = []
    if point.prefill_tokens:
        after = f" after {point.prefill_start}" if point.prefill_start else ""
        parts.append(f"prefill {point.prefill_tokens}{after}")
    if point.decode_requests:
        parts.append(f"decode {point.decode_requests} x {point.context_tokens}")
    return " + ".join(parts)


def held_out_table(profile: Profile) -> Table:
    """Return a table of the points that were held out from the fit, with measured and fitted times."""
    from rich.table import Table

    from fgengine.units import seconds

    table = Table(title="points held out from the fit", title_justify="left")
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
    poor = " (poor: its predictions are only rough)" if profile.median_error > POOR_FIT else ""
    say(console, f"median error on held-out points: {profile.median_error:.0%}{poor}")
    say(
        console,
        f"shortest step {seconds(cost.min_iteration_seconds)}; prefill of 64, 256, 1024 tokens: "
        + ", ".join(seconds(cost.prefill_seconds(n)) for n in (64, 256, 1024))
        + f"; KV copies {size(cost.copy_bytes_per_second)}/s",
    )
    tolerance = "" if times >= 1.0 else f", within the tolerance of {TOLERANCE}"
    say(
        console,
        f"this machine reads {size(profile.ceilings.bytes_per_second)}/s and computes "
        f"{profile.ceilings.flops_per_second / 1e12:.3g} TFLOP/s; no step is faster than that allows: "
        f"the closest, {describe(closest)}, takes {times:.2g} x the shortest possible time{tolerance}",
    )
