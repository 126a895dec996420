"""``fgbench simulate``: simulates a load on virtual clocks, or replays a real run on a virtual clock."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgbench.cli.flags import ConfigFile, given, takes_options
from fgbench.cli.printing import say
from fgbench.cli.run import measure
from fgbench.spec.backend import SIMULATED, BackendSpec
from fgbench.spec.client import ClientSpec
from fgbench.spec.files import options_of
from fgbench.spec.load import LoadSpec
from fgengine.config import EngineConfig
from fgengine.kv.sizing import GIB
from fgengine.settings import described

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.report.fidelity import Row
    from fgengine.profile import Profile

ALLOWED_WITH_LIKE = {"like", "profile", "as_json"}


def _cluster_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Simulation")


@takes_options
def simulate(
    load: LoadSpec,
    server: EngineConfig,
    context: typer.Context,
    replicas: Annotated[int, _cluster_option("Number of engines.", "--replicas")] = 1,
    router: Annotated[
        str,
        _cluster_option(
            "How requests get a replica: round-robin, least-loaded, shortest-queue or power-of-two.",
            "--router",
        ),
    ] = "round-robin",
    like: Annotated[
        Path | None,
        _cluster_option("Replay this run's requests, and compare the simulation with the run.", "--like"),
    ] = None,
    as_json: Annotated[bool, _cluster_option("With --like: print JSON.", "--json")] = False,
    config: ConfigFile = None,
) -> None:
    """Simulate the engine: run its real scheduler with step times from a profile.

    It needs no GPU and no weights. It writes a run folder like a real run, so that compare works on it. No
    text is generated, and the predictor "learned" sees prompts of zeros.

    Example: simulate eight replicas; then check how well a simulation agrees with a real run:

        fgbench simulate --replicas 8 --rate 16 --router shortest-queue
        fgbench simulate --like results/RUN

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many rejected requests, 130 interrupted.
    """
    from rich.console import Console

    from fgbench.backends.named import backend_of

    if like is not None:
        _nothing_else_given(context)
        _replay(like, server, as_json, Console())
        return
    if as_json:
        raise ValueError("--json needs --like: without it, read the figures in the run folder's run.json")
    load.check_simulated()
    options = options_of(load, server) | {"replicas": replicas, "router": router}
    del options["results"]
    spec = BackendSpec(name=SIMULATED, server=server)
    measure(
        lambda: backend_of(spec, replicas=replicas, router=router),
        load,
        ClientSpec(),
        server,
        options=options,
    )


def _nothing_else_given(context: typer.Context) -> None:
    """Raise ValueError if an option is given that has no effect with --like."""
    for name in sorted(given(context) - ALLOWED_WITH_LIKE):
        raise ValueError(
            f"--{name.replace('_', '-')} does not work with --like, which takes all settings except the "
            "profile from the run: leave it out"
        )


def _replay(folder: Path, given_config: EngineConfig, as_json: bool, console: Console) -> None:
    from fgbench.backends.simulated import Simulated, find_profile, step_times_of
    from fgbench.report.fidelity import StepSpeed, fidelity, fidelity_json, fidelity_table, requests_of
    from fgbench.results.run import read_run

    run = read_run(folder)
    config = dataclasses.replace(_config_of(run.info, folder), profile=given_config.profile)
    if config.profile is not None:  # in place of the analytic device that the run's server may have had
        config = dataclasses.replace(config, device_spec=None, step_overhead_ms=None)
    profile = find_profile(config)

    def rows(profile: Profile) -> list[Row]:
        return fidelity(run.records, list(Simulated(config, profile).replay(requests_of(run.records))))

    plain = rows(profile)
    speed = StepSpeed.of(run.info, profile.cost)
    at_speed = []
    if speed is not None:
        at_speed = rows(dataclasses.replace(profile, cost=profile.cost.slowed(speed.total)))
    if as_json:
        print(json.dumps(fidelity_json(run, plain, speed, at_speed), indent=2, allow_nan=False))
        return
    console.print(fidelity_table(f"{run.path.name}, {len(run.records)} requests", plain))
    say(console, step_times_of(profile))
    if speed is not None:
        say(
            console,
            f"The server's steps took {speed.total:.3f} times as long as the profile predicts "
            f"({speed.model:.3f} times for the model alone; the rest is the server's loop). Near capacity, "
            "slightly slower steps cause much longer waits. The next table uses the server's speed:",
        )
        console.print(fidelity_table("simulated at the speed of the run", at_speed))
    elif not profile.cost.is_linear:
        say(
            console,
            "The profile's step times contain a maximum, so the sums in run.json do not show how much "
            "slower the server's steps were than the profile predicts.",
        )
    if not run.complete:
        say(console, "The run is not complete: requests that had not ended are left out of both.", "yellow")


def _config_of(info: dict[str, Any], folder: Path) -> EngineConfig:
    """Return the settings of the run's server. Settings that are newer than the run have their defaults."""
    settings = (info.get("backend") or {}).get("settings") or {}
    if "policy" not in settings or "max_batch_size" not in settings:
        raise ValueError(f"{folder} has no settings of its server: give --like a run of fastgen")
    known = {field.name for field in described(EngineConfig)} - {"profile"}
    found = {key: value for key, value in settings.items() if key in known}
    found.setdefault("max_queue", 0)  # servers older than this option had an unlimited queue
    return EngineConfig(**found | _pools_of(found, info))


def _pools_of(settings: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Return, as options, the pool sizes that the run's server chose because the user did not set them."""
    stats = (info.get("server_stats") or {}).get("after") or {}
    pools: dict[str, Any] = {}
    if settings.get("num_device_blocks") is None and "num_device_blocks" in stats:
        pools["num_device_blocks"] = stats["num_device_blocks"]
    if settings.get("swap_space") is None and "block_bytes" in stats:
        # Add half a block, so that rounding the size in GiB does not lose a block.
        blocks = stats["num_host_blocks"] + 0.5 if stats["num_host_blocks"] else 0
        pools["swap_space"] = blocks * stats["block_bytes"] / GIB
    return pools
