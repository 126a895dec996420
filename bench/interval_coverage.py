"""Counts how often the intervals over seeds contain the typical figure, and how often a verdict is false.

    python bench/interval_coverage.py [--runs 300] [--seeds 3,5,10] [--loads 0.5,0.8,0.95]

Runs of 100 requests with ShareGPT's lengths are simulated at loads below capacity, each with its own seed.
The true figure is the median over all runs. Groups of 3, 5 or 10 runs are drawn many times, and each group
gets its interval. The verdicts compare fcfs with itself: two groups with different seeds, paired. So every
"better" or "worse" is false, and at most one pair in twenty should get one.
"""

from __future__ import annotations

import argparse
from functools import partial
from multiprocessing import Pool
from statistics import median

import numpy as np
from overload_marks import capacity, serve
from rich.console import Console
from rich.table import Table

from fgbench.metrics.statistics import PairedRatio, figure_interval
from fgbench.metrics.summary import summarize

POLICY, LENGTHS, REQUESTS = "fcfs", "ShareGPT", 100
FIGURES = (("normalized_latency", "mean"), ("ttft", "mean"), ("ttft", "p99"))
GROUPS = 2000


def figures(rate: float, seed: int) -> list[float]:
    """Return ``FIGURES`` of one simulated run."""
    summary = summarize(list(serve(LENGTHS, POLICY, REQUESTS, rate, seed)), offered_rate=rate)
    return [summary.figure(metric, statistic) or 0.0 for metric, statistic in FIGURES]


def shares(values: list[float], seeds: int) -> tuple[float, float]:
    """Return the share of intervals that contain the median, and the share of false verdicts."""
    rng, truth = np.random.default_rng(0), median(values)
    held = verdicts = 0
    for _ in range(GROUPS):
        mine, theirs = rng.choice(values, (2, seeds), replace=False).tolist()
        interval = figure_interval(mine)
        held += interval is not None and interval.low <= truth <= interval.high
        ratio = PairedRatio.of(dict(enumerate(mine)), dict(enumerate(theirs)))
        verdicts += ratio is not None and ratio.p_value is not None and ratio.p_value < 0.05
    return held / GROUPS, verdicts / GROUPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="simulated runs at each load")
    parser.add_argument("--seeds", default="3,5,10", help="seeds of a group")
    parser.add_argument("--loads", default="0.5,0.8,0.95", help="shares of the capacity")
    options = parser.parse_args()
    table = Table("load", "figure", "seeds", "intervals that contain the median", "false verdicts")
    with Pool() as pool:
        for load in map(float, options.loads.split(",")):
            rate = load * capacity(LENGTHS, POLICY)
            found = pool.map(partial(figures, rate), range(options.runs))
            for (metric, statistic), values in zip(FIGURES, zip(*found, strict=True), strict=True):
                for seeds in map(int, options.seeds.split(",")):
                    held, verdicts = shares(list(values), seeds)
                    name = f"{statistic} {metric}"
                    table.add_row(f"{load:g}x", name, str(seeds), f"{held:.1%}", f"{verdicts:.1%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
