"""Compares the modes of offloading, by pool size and link: simulated, sj-mlfq, 1.3 times the capacity.

    python bench/offloading.py [--seeds 6] [--requests 200] [--policy sj-mlfq] [--jobs 2]

There are two machines:

- SmolLM2-135M with this project's reference profile, and a link of 12.4 GB/s (as measured), 200 or 50 MB/s.
- A synthetic machine like the paper's, OPT-13B on one GPU: a step takes 18.5 ms, a prompt token 0.11 ms, and
  the link has 20 GB/s.

JCT/token is the mean over all requests and seeds. ``out`` and ``back`` are blocks offloaded and uploaded,
relative to the blocks that `reactive` offloads. ``idle`` is the share of the time in which the device waits
for copies. The paper's figure 17 compares proactive, reactive (here `blocking`) and recompute.

Prints a table, then a line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from numpy.random import default_rng
from overload import lengths, mean, profile
from rich.console import Console
from rich.table import Table

from fgengine.config import EngineConfig, Offloading
from fgengine.cost import CostModel
from fgengine.model.catalog import shape_of
from fgengine.profile import Profile, shape_key
from fgengine.request import Request, SamplingParams
from fgengine.simulation.setup import make_cluster

LOAD = 1.3
OPT_13B = CostModel(step=0.0185, prefill_token=0.00011, copy_bytes_per_second=20e9)
"""A synthetic machine, not a measured GPU: a decode step reads 26 GB of weights."""


@dataclass(frozen=True)
class Setting:
    """A model, its KV pools and its link."""

    model: str
    device_blocks: int
    host_gib: float
    link: float
    """Bytes per second."""


SETTINGS = (
    *(Setting("smollm2-135m", blocks, 8.0, link) for blocks in (200, 400) for link in (12.4e9, 2e8, 5e7)),
    *(Setting("opt-13b", blocks, host, 20e9) for blocks in (250, 400) for host in (2.0, 32.0)),
)


def profile_of(setting: Setting) -> Profile:
    measured = profile()
    if setting.model == "smollm2-135m":
        return replace(measured, cost=replace(measured.cost, copy_bytes_per_second=setting.link))
    shape = shape_of(setting.model)
    cost = replace(OPT_13B, copy_bytes_per_second=setting.link)
    return replace(
        measured,
        model=setting.model,
        shape=shape_key(shape),
        device="a synthetic GPU",
        dtype="float16",
        cost=cost,
        points=(),
    )


def arrivals(cost: CostModel, requests: int, seed: int, batch: int, longest: int) -> Iterator[Request]:
    sizes = [(min(p, longest // 2), min(o, longest // 2)) for p, o in lengths(requests, seed)]
    capacity = len(sizes) / sum(cost.share_seconds(prompt, output, batch) for prompt, output in sizes)
    at = 0.0
    for index, (prompt, output) in enumerate(sizes):
        at += float(default_rng((seed, index)).exponential()) / (LOAD * capacity)
        params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        yield Request(str(index), prompt, params, at, bytearray(prompt), phase_since=at)


def simulate(job: tuple[Setting, Offloading, str, int, int]) -> dict[str, Any]:
    setting, mode, policy, requests, seed = job
    config = EngineConfig(
        model=setting.model,
        policy=policy,
        offloading=mode,
        num_device_blocks=setting.device_blocks,
        swap_space=setting.host_gib,
        predictor="noisy:1.7",
        max_queue=0,
        max_queue_tokens=0,
    )
    used, shape = profile_of(setting), shape_of(setting.model)
    cluster = make_cluster(config, shape, used)
    load = arrivals(used.cost, requests, seed, config.max_batch_size, shape.max_position)
    done = [ending.request for ending in cluster.serve(load)]
    stats = cluster.stats()
    return asdict(setting) | {
        "mode": mode,
        "seed": seed,
        "jct_per_token": mean((r.phase_since - r.arrival) / r.num_generated for r in done if r.num_generated),
        "jct": mean(r.phase_since - r.arrival for r in done),
        "makespan": max(r.phase_since for r in done),
        "out": stats["offloaded_blocks"],
        "back": stats["uploaded_blocks"],
        "recomputed": stats["recomputed_tokens"] / sum(len(r.tokens) for r in done),
        "idle": stats["copy_wait_seconds"] / max(r.phase_since for r in done),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--policy", default="sj-mlfq")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    modes: tuple[Offloading, ...] = get_args(Offloading)
    jobs = [
        (setting, mode, chosen.policy, chosen.requests, seed)
        for setting in SETTINGS
        for mode in modes
        for seed in range(chosen.seeds)
    ]
    with ProcessPoolExecutor(chosen.jobs) as pool:
        rows = list(pool.map(simulate, jobs, chunksize=chosen.seeds))
    table = Table(title=f"{chosen.policy}, {chosen.seeds} seeds of {chosen.requests} requests at {LOAD}x")
    for name in COLUMNS.split(","):
        table.add_column(name, justify="right")
    means = []
    for setting in SETTINGS:
        groups = {mode: [r for r in rows if r["mode"] == mode and matches(r, setting)] for mode in modes}
        figures = {
            mode: {key: mean(r[key] for r in group) for key in FIGURES} for mode, group in groups.items()
        }
        base = figures["reactive"]
        for mode, row in figures.items():
            means.append(asdict(setting) | {"mode": mode} | row)
            table.add_row(
                setting.model,
                str(setting.device_blocks),
                f"{setting.host_gib:g}",
                f"{setting.link / 1e6:,.0f}",
                mode,
                f"{1000 * row['jct_per_token']:,.1f} ms",
                f"{row['jct_per_token'] / base['jct_per_token']:.2f}",
                f"{row['jct']:,.1f} s",
                f"{row['makespan']:,.0f} s",
                f"{row['out'] / max(1.0, base['out']):.2f}",
                f"{row['back'] / max(1.0, base['out']):.2f}",
                f"{row['recomputed']:.1%}",
                f"{row['idle']:.1%}",
            )
    Console(width=170).print(table)
    print(json.dumps(means))


COLUMNS = (
    "model,device blocks,host GiB,link MB/s,mode,JCT/token,/ reactive,JCT,makespan,out,back,recomputed,idle"
)
FIGURES = ("jct_per_token", "jct", "makespan", "out", "back", "recomputed", "idle")


def matches(row: dict[str, Any], setting: Setting) -> bool:
    return all(row[key] == value for key, value in asdict(setting).items())


if __name__ == "__main__":
    main()
