"""Checks analytic profiles against a measured one: prints the error of the predicted step times.

    fgbench profile --out cpu.json
    python bench/analytic.py cpu.json [--json]

The device's figures are the memory bandwidth and the FLOP/s that ``fgbench profile`` measured before the
steps. From them, and with the efficiencies that are assumed for every device, the analytic profile predicts
each measured step. The second prediction is the roofline itself: 100% of the figures, and no overhead. The
error is predicted / measured - 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fgengine.analytic import analytic_cost
from fgengine.devices import GIB, custom_device
from fgengine.efficiency import Efficiency
from fgengine.model.catalog import shape_of
from fgengine.profile import Profile
from fgengine.profile_grid import TimedStep
from fgengine.units import number

ASSUMED = {
    "assumed": Efficiency(),
    "roofline": Efficiency(bandwidth=1.0, flops=1.0, link=1.0, step_seconds=0.0, layer_seconds=0.0),
}
"""The efficiencies of the two predictions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("profile", type=Path, help="file of a measured profile")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    profile = Profile.load(options.profile)
    if profile.analytic is not None:
        parser.error(f"{options.profile} is an analytic profile: give a measured one, from `fgbench profile`")
    found = compared(profile)
    if options.json:
        print(json.dumps({"device": profile.describe(), "steps": found}, indent=1))
        return
    ceilings = profile.ceilings
    print(f"{profile.model} on {profile.describe()}")
    print(
        f"measured peaks: {number(ceilings.bytes_per_second / 1e9)} GB/s, "
        f"{number(ceilings.flops_per_second / 1e9)} GFLOP/s"
    )
    Console().print(table(found))
    for _, reason in Efficiency().reasons():
        print(f"assumed: {reason}")


def compared(profile: Profile) -> list[dict[str, Any]]:
    """Return, for each kind of step, the number of measured steps and the errors of both predictions."""
    shape = shape_of(profile.model)
    spec = custom_device(
        memory_bytes=GIB,  # it has no effect on step times
        bytes_per_second=profile.ceilings.bytes_per_second,
        flops=profile.ceilings.flops_per_second,
        link_bytes_per_second=profile.cost.copy_bytes_per_second,
        dtype=profile.dtype,
    )
    costs = {name: analytic_cost(shape, spec, profile.dtype, each) for name, each in ASSUMED.items()}
    found = []
    for kind, points in kinds(profile.points).items():
        errors = {
            name: [cost.step_seconds(point.shape) / point.seconds - 1.0 for point in points]
            for name, cost in costs.items()
        }
        found.append({"steps": kind, "number": len(points)} | {k: spread(v) for k, v in errors.items()})
    return found


def kinds(points: Iterable[TimedStep]) -> dict[str, list[TimedStep]]:
    """Return the measured steps by what they compute; a kind without steps is left out."""
    found: dict[str, list[TimedStep]] = {}
    for point in points:
        if not point.prefill_tokens:
            kind = "decode of 1 request" if point.decode_requests == 1 else "decode of 2 and more requests"
        else:
            kind = "prefill and decode" if point.decode_requests else "prefill"
        found.setdefault(kind, []).append(point)
    return found


def spread(errors: list[float]) -> dict[str, float]:
    """Return the least, the median and the greatest of signed errors, and the median of their sizes."""
    return {
        "min": min(errors),
        "median": statistics.median(errors),
        "max": max(errors),
        "median_size": statistics.median(map(abs, errors)),
    }


def table(found: list[dict[str, Any]]) -> Table:
    """Return the errors as a table."""
    made = Table(title="error of the predicted step times: median (from ... to)", title_justify="left")
    made.add_column("steps")
    made.add_column("number", justify="right")
    for name in ASSUMED:
        made.add_column(name, justify="right")
    for row in found:
        cells = [
            f"{one['median']:+.0%} ({one['min']:+.0%} to {one['max']:+.0%})" for one in map(row.get, ASSUMED)
        ]
        made.add_row(row["steps"], str(row["number"]), *cells)
    return made


if __name__ == "__main__":
    main()
