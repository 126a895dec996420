"""Writes and shows an analytic profile, for ``fgbench profile --device-spec``. Nothing is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fgbench.cli.printing import say
from fgengine.analytic import analytic_profile, dtype_of, find_spec, knee_tokens, table_rows
from fgengine.cache import cache_folder
from fgengine.devices import DeviceSpec, custom_device
from fgengine.efficiency import Efficiency
from fgengine.model.catalog import shape_of
from fgengine.profile import Profile, file_name
from fgengine.quantities import bytes_of, bytes_per_second, flops_per_second

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fgengine.model.shape import ModelShape

T = TypeVar("T")


def write_analytic(
    model: str,
    dtype: str,
    device_spec: str | None,
    figures: Mapping[str, str | None],
    step_overhead_ms: float | None,
    out: Path | None,
    console: Console,
) -> None:
    """Compute the profile of a device, write it and show what it predicts.

    Args:
        device_spec: a name of the catalog, or the file of an analytic profile; None: ``figures`` describe the
            device.
        figures: texts of the options bandwidth, flops, link and memory.
        step_overhead_ms: fixed milliseconds of each step; None: as assumed for the device.
        out: file to write; None: a file in the cache, in a folder of analytic profiles.

    Raises ValueError if the device or the model is unknown, or if a figure is missing or unreadable.
    """
    shape = shape_of(model)
    chosen = dtype_of(dtype, shape)
    if device_spec is None:
        spec, efficiency = _custom(figures, chosen), Efficiency()
    elif own := sorted(name for name, text in figures.items() if text is not None):
        raise ValueError(
            f"--device-spec has all figures of a device: leave out --{' and --'.join(own)}, or give "
            "--bandwidth, --flops, --link and --memory without --device-spec"
        )
    else:
        spec, efficiency = find_spec(device_spec)
    if step_overhead_ms is not None:
        efficiency = efficiency.with_step_overhead(step_overhead_ms / 1e3)
    profile = analytic_profile(model, shape, spec, chosen, efficiency)
    path = out or cache_folder() / "profiles" / "analytic" / file_name(model, spec.name, chosen)
    profile.save(path)
    show_analytic(profile, shape, console)
    say(console, f"written: {path}")


def show_analytic(profile: Profile, shape: ModelShape, console: Console) -> None:
    """Print the steps that an analytic profile predicts, and what it assumes."""
    from fgengine.units import seconds, size

    assert profile.analytic is not None
    spec, cost = profile.analytic.spec, profile.cost
    say(console, f"{profile.model} on {profile.device}, {profile.dtype}: analytic, not measured")
    console.print(_table(profile, shape))
    say(console, f"{spec.name} has {spec.describe()} (source: {spec.source})")
    say(
        console,
        f"steps of up to {knee_tokens(cost) - 1} new tokens take as long as reading the weights, "
        f"{seconds(cost.matmul_step)}; KV copies {size(cost.copy_bytes_per_second)}/s",
    )
    say(console, "assumed:")
    for _, reason in profile.analytic.efficiency.reasons():
        say(console, f"  {reason}")


def _table(profile: Profile, shape: ModelShape) -> Table:
    from rich.table import Table

    from fgengine.units import seconds

    table = Table()
    table.add_column("step")
    table.add_column("predicted", justify="right")
    table.add_column("mostly")
    for row in table_rows(profile, shape):
        table.add_row(row.step, seconds(row.seconds), row.bound_by)
    return table


def _custom(figures: Mapping[str, str | None], dtype: str) -> DeviceSpec:
    """Return the device that the options describe. Raises ValueError if one is missing or unreadable."""
    known = {name: text for name, text in figures.items() if text is not None}
    if missing := sorted(figures.keys() - known.keys()):
        raise ValueError(
            "a device of your own needs --bandwidth, --flops, --link and --memory: add "
            f"--{' and --'.join(missing)}"
        )
    return custom_device(
        memory_bytes=_read("memory", known, bytes_of),
        bytes_per_second=_read("bandwidth", known, bytes_per_second),
        flops=_read("flops", known, flops_per_second),
        link_bytes_per_second=_read("link", known, bytes_per_second),
        dtype=dtype,
    )


def _read(name: str, figures: Mapping[str, str], parse: Callable[[str], T]) -> T:
    try:
        return parse(figures[name])
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from None
