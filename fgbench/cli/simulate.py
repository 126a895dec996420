"""``fgbench simulate``: a load on virtual clocks, or a real run replayed on one."""

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
from fgbench.spec.files import options_of
from fgbench.spec.load import ClientSpec, LoadSpec
from fgengine.config import EngineConfig
from fgengine.kv.sizing import GIB
from fgengine.settings import described

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.report.fidelity import Row
    from fgengine.profile import Profile

GO_WITH_LIKE = {"like", "profile", "as_json"}


def _cluster_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Simulation")


@takes_options
def simulate(
    load: LoadSpec,
    server: EngineConfig,
    context: typer.Context,
    replicas: Annotated[int, _cluster_option("Copies of the engine.", "--replicas")] = 1,
    router: Annotated[
        str,
        _cluster_option("round-robin, least-loaded, shortest-queue or power-of-two.", "--router"),
    ] = "round-robin",
    like: Annotated[
        Path | None,
        _cluster_option("Replay this run's arrivals and lengths, and compare with it.", "--like"),
    ] = None,
    as_json: Annotated[bool, _cluster_option("With --like: print JSON.", "--json")] = False,
    config: ConfigFile = None,
) -> None:
    """Simulate the engine: its own scheduler and KV accounts, with step times from a profile.

    The run folder is like that of a real run, so compare works on it. Nothing is generated: no weights are
    needed, and the predictor "learned" sees prompts of zeros.

    Example: what eight copies would do, then how true a simulation is to a real run:

        fgbench simulate --replicas 8 --rate 16 --num-prompts 100000 --router shortest-queue
        fgbench simulate --like results/20261123-081303_fastgen_sharegpt-lengths_r1.93_s0

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many requests refused, 130 interrupted.
    """
    from rich.console import Console

    from fgbench.backends.named import backend_of

    if like is not None:
        _nothing_else_given(context)
        _replay(like, server, as_json, Console())
        return
    if as_json:
        raise ValueError(
            "--json goes with --like; the figures of a simulated run are in its folder's run.json"
        )
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
    """Raises ValueError for an option that --like would leave without effect."""
    for name in sorted(given(context) - GO_WITH_LIKE):
        raise ValueError(
            f"--{name.replace('_', '-')} does not go with --like, which takes everything but the profile "
            "from the run"
        )


def _replay(folder: Path, asked: EngineConfig, as_json: bool, console: Console) -> None:
    from fgbench.backends.simulated import Simulated, find_profile
    from fgbench.report.fidelity import StepSpeed, fidelity, fidelity_json, fidelity_table, requests_of
    from fgbench.results.run import read_run

    run = read_run(folder)
    config = dataclasses.replace(_config_of(run.info, folder), profile=asked.profile)
    profile = find_profile(config)

    def rows(profile: Profile) -> list[Row]:
        return fidelity(run.records, list(Simulated(config, profile).replay(requests_of(run.records))))

    plain = rows(profile)
    speed = StepSpeed.of(run.info, profile.cost)
    at_speed = []
    if speed is not None:
        at_speed = rows(dataclasses.replace(profile, cost=profile.cost.slowed(speed.whole)))
    if as_json:
        print(json.dumps(fidelity_json(run, plain, speed, at_speed), indent=2, allow_nan=False))
        return
    console.print(fidelity_table(f"{run.path.name}, {len(run.records)} requests", plain))
    say(console, f"step times of {profile.device}, {profile.dtype}")
    if speed is not None:
        say(
            console,
            f"The server's steps took {speed.whole:.3f} times what the profile says of the same steps "
            f"({speed.model:.3f} times while computing, the rest in its loop). Near capacity a small "
            "difference in speed becomes a large one in waiting. At that speed:",
        )
        console.print(fidelity_table("simulated at the run's own speed", at_speed))
    if not run.complete:
        say(console, "The run is not complete: what had not ended is missing on both sides.", "yellow")


def _config_of(info: dict[str, Any], folder: Path) -> EngineConfig:
    """What its server ran with; settings that it did not know of are at their defaults."""
    settings = (info.get("backend") or {}).get("settings") or {}
    if "policy" not in settings or "max_batch_size" not in settings:
        raise ValueError(f"{folder} does not say how its server was set: --like needs a run of fastgen")
    known = {one.name for one in described(EngineConfig)} - {"profile"}
    found = {key: value for key, value in settings.items() if key in known}
    found.setdefault("max_queue", 0)  # servers older than the option had a queue without a bound
    return EngineConfig(**found | _pools_of(found, info))


def _pools_of(settings: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The pools that the run's server found memory for, as options, where they were not set by hand."""
    stats = (info.get("server_stats") or {}).get("after") or {}
    pools: dict[str, Any] = {}
    if settings.get("num_device_blocks") is None and "num_device_blocks" in stats:
        pools["num_device_blocks"] = stats["num_device_blocks"]
    if settings.get("swap_space") is None and "block_bytes" in stats:
        # Half a block more: rounding a size in GiB must not cost a block.
        blocks = stats["num_host_blocks"] + 0.5 if stats["num_host_blocks"] else 0
        pools["swap_space"] = blocks * stats["block_bytes"] / GIB
    return pools
