"""Measures how fast requests are simulated, including writing the run folder, and how much memory it takes.

    python bench/simulator.py [--requests 100000] [--replicas 8] [--policy sj-mlfq] [--load 0.8]
        [--profile FILE] [--router round-robin]

``--load`` is the offered load as a share of the capacity that the profile predicts for full batches. Prints a
line of text, then a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from numpy.random import default_rng

from fgbench.backends.simulated import Simulated, find_profile
from fgbench.benchmark import execute_run
from fgbench.spec.load import Load
from fgbench.workload.reading import load_dataset
from fgengine.config import EngineConfig

SAMPLED = 2000
REFERENCE = Path(__file__).parent.parent / "results/reference/overload/profile.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--policy", default="sj-mlfq")
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--profile", type=Path, default=REFERENCE)
    parser.add_argument("--router", default="round-robin")
    chosen = parser.parse_args()

    config = EngineConfig(policy=chosen.policy, profile=chosen.profile)
    simulation = Simulated(config, find_profile(config), replicas=chosen.replicas, router=chosen.router)
    dataset = load_dataset("sharegpt-lengths")
    shares = [
        simulation.profile.cost.share_seconds(s.prompt_tokens, s.output_tokens, config.max_batch_size)
        for s in islice(dataset.samples(default_rng(0)), SAMPLED)
    ]
    rate = chosen.load * chosen.replicas * len(shares) / sum(shares)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = execute_run(
            simulation, dataset, Load(rate=rate, num_prompts=chosen.requests), results=Path(folder)
        )
        simulated = max(record.finished or 0.0 for record in run.records)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result = {
        "policy": chosen.policy,
        "requests": chosen.requests,
        "replicas": chosen.replicas,
        "load": chosen.load,
        "rate": round(rate, 3),
        "seconds": round(seconds, 1),
        "simulated_seconds": round(simulated, 1),
        "peak_bytes": peak,
    }
    print(
        f"{chosen.requests:,} requests on {chosen.replicas} replicas at {chosen.load:g} of capacity, "
        f"{chosen.policy}: {seconds:.1f} s for {simulated / 3600:.1f} simulated hours, "
        f"{1e6 * seconds / chosen.requests:.0f} us per request, {peak / 2**30:.2f} GiB"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
