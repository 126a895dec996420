"""Compares variants of two MLFQ rules: how work is charged to a quantum, and when a waiting job is promoted.

    python bench/mlfq.py [--loads sharegpt,prompts-x8,swapped,third-long] [--rates 0.9,1.1,1.3] [--seeds 6]
        [--requests 300] [--blocks 2000] [--profile FILE]

It is simulated, so every variant serves the same requests on the same machine. ``--rates`` are shares of the
capacity that the profile predicts for the lengths of each sample. The loads:

    sharegpt     lengths of ShareGPT conversations
    prompts-x8   the same, with prompts eight times as long
    swapped      the same, with prompt and output swapped
    third-long   every third prompt has 1,000 tokens, outputs are a quarter as long

The host pool is 16 GiB, so that no work is discarded. Prints a table for each load and rate: ratios to
sj-mlfq-artifact, paired by seed, with their standard errors. Then prints a line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fgbench.backends.simulated import Simulated, find_profile
from fgbench.workload.build import build_workload
from fgbench.workload.reading import load_dataset
from fgbench.workload.workload import RequestSpec
from fgengine.config import EngineConfig
from fgengine.cost import CostModel
from fgengine.request import Request
from fgengine.scheduling.mlfq import MLFQ, ArtifactMLFQ, SkipJoinMLFQ

REFERENCE = Path(__file__).parent.parent / "results/reference/overload/profile.json"
MAX_TOKENS = 2048
"""Maximum length of prompt and output of SmolLM2."""
SWAP_GIB = 16.0
BASE = "sj-mlfq-artifact"
METRICS = ("JCT / token", "JCT", "p99 JCT", "TTFT")


class FixedLimit(SkipJoinMLFQ):
    """Charges a job its own work, like sj-mlfq, but promotes it after a fixed time."""

    promotion_limit = ArtifactMLFQ.promotion_limit


class AtMostTheStep(FixedLimit):
    """Charges a job its own work, but at most the time of the step."""

    def charge(self, job: Any, seconds: float) -> float:
        return min(seconds, super().charge(job, seconds))

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        return 0.0


class PlainWholeSteps(ArtifactMLFQ):
    """The artifact's rules without skip-join."""

    entry_level = MLFQ.entry_level


POLICIES = {
    BASE: BASE,
    "without skip-join": "mlfq:PlainWholeSteps",
    "own work, fixed limit": "mlfq:FixedLimit",
    "at most the step": "mlfq:AtMostTheStep",
    "sj-mlfq": "sj-mlfq",
    "mlfq": "mlfq",
    "fcfs": "fcfs",
}
"""Policies by their name in the tables."""


def lengths(load: str, requests: Iterable[RequestSpec]) -> list[tuple[int, int]]:
    """Return the (prompt, output) tokens of each request under the load."""
    pairs = []
    for request in requests:
        prompt, output = request.prompt_tokens, request.output_tokens
        if load == "prompts-x8":
            prompt = min(8 * prompt, MAX_TOKENS - output)
        elif load == "swapped":
            prompt, output = output, prompt
        elif load == "third-long":
            prompt = 1000 if request.index % 3 == 0 else prompt
            output = max(1, output // 4)
        elif load != "sharegpt":
            raise ValueError(f"there is no load {load!r}: see --help for the loads")
        pairs.append((prompt, output))
    return pairs


def workload(load: str, rate: float, count: int, seed: int, cost: CostModel, batch: int) -> list[RequestSpec]:
    """Return requests. ``rate`` is a share of the capacity that the cost model predicts for their lengths."""
    unit = build_workload(
        load_dataset("sharegpt-lengths"), rate=1.0, num_prompts=count, seed=seed, with_prompts=False
    )
    pairs = lengths(load, unit.requests)
    capacity = 1.0 / statistics.fmean(cost.share_seconds(prompt, output, batch) for prompt, output in pairs)
    return [
        dataclasses.replace(
            spec,
            scheduled=spec.scheduled / (rate * capacity),
            prompt_tokens=prompt,
            output_tokens=output,
        )
        for spec, (prompt, output) in zip(unit.requests, pairs, strict=True)
    ]


def measure(policy: str, requests: list[RequestSpec], profile: Path, blocks: int) -> dict[str, float]:
    """Simulate the requests; return means and the p99 JCT, in seconds."""
    options = EngineConfig(policy=policy, profile=profile, num_device_blocks=blocks, swap_space=SWAP_GIB)
    records = list(Simulated(options, find_profile(options)).replay(requests, keep_token_times=False))
    times = sorted((record.finished or 0.0) - record.scheduled for record in records)
    return {
        "JCT / token": statistics.fmean(
            ((record.finished or 0.0) - record.scheduled) / record.output_tokens for record in records
        ),
        "JCT": statistics.fmean(times),
        "p99 JCT": times[math.ceil(0.99 * len(times)) - 1],
        "TTFT": statistics.fmean((record.first_token or 0.0) - record.scheduled for record in records),
    }


def ratio(ours: list[float], base: list[float]) -> tuple[float, float]:
    """Return the mean of the ratios, and its standard error."""
    ratios = [value / base_value for value, base_value in zip(ours, base, strict=True)]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
    return statistics.fmean(ratios), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--loads", default="sharegpt,prompts-x8,swapped,third-long")
    parser.add_argument("--rates", default="0.9,1.1,1.3")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--blocks", type=int, default=2000)
    parser.add_argument("--profile", type=Path, default=REFERENCE)
    chosen = parser.parse_args()

    console = Console(width=110)
    options = EngineConfig(profile=chosen.profile)
    cost = find_profile(options).cost
    rows = []
    for load in chosen.loads.split(","):
        for rate in map(float, chosen.rates.split(",")):
            measured: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
            for seed in range(chosen.seeds):
                requests = workload(load, rate, chosen.requests, seed, cost, options.max_batch_size)
                for name, policy in POLICIES.items():
                    measured[name].append(measure(policy, requests, chosen.profile, chosen.blocks))
            table = Table(
                title=f"{load}, {rate:g} x capacity, {chosen.seeds} seeds of {chosen.requests}, "
                f"{chosen.blocks} blocks"
            )
            for column in ("policy", *METRICS):
                table.add_column(column, justify="right")
            for name, runs in measured.items():
                row: dict[str, Any] = {"load": load, "rate": rate, "policy": name}
                for metric in METRICS:
                    values = [run[metric] for run in runs]
                    mean, error = ratio(values, [run[metric] for run in measured[BASE]])
                    row[metric] = {
                        "seconds": round(statistics.fmean(values), 4),
                        "ratio": round(mean, 3),
                        "error": round(error, 3),
                    }
                rows.append(row)
                cells = [
                    f"{row[m]['seconds']:.3g} s"
                    if name == BASE
                    else f"{row[m]['ratio']:.2f} ± {row[m]['error']:.2f}"
                    for m in METRICS
                ]
                table.add_row(name, *cells)
            console.print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
