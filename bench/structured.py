"""Measures what structured outputs cost: the time of a decode step with grammars, against one without.

    python bench/structured.py [--model NAME_OR_FOLDER] [--device cpu|cuda] [--rounds N]

Requests with and without a grammar run in turn, with the same prompts. Prints a table, then a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fgengine.config import EngineConfig
from fgengine.engine import Engine
from fgengine.grammar import Grammar
from fgengine.request import SamplingParams

BATCHES = (1, 4, 16)
SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "email": {"type": "string", "pattern": "^[a-z]{1,20}@[a-z]{1,20}[.]com$"},
            "role": {"enum": ["admin", "user", "guest"]},
        },
        "required": ["name", "age", "email", "role"],
        "additionalProperties": False,
    },
}
GRAMMAR = Grammar("json_schema", json.dumps(SCHEMA))
PROMPT_TOKENS = 64
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "seed": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    config = EngineConfig(model=options.model, device=options.device, policy="fcfs", swap_space=0)
    engine = Engine.from_config(config)
    rows = [
        measure(engine, kind, batch, options.rounds, options.steps) for kind in KINDS for batch in BATCHES
    ]
    engine.close()
    table = Table(
        "tokens", "requests", "ms without", "ms with", "more", title=f"{options.model}, decode steps"
    )
    for row in rows:
        milliseconds = [f"{row[key] * 1e3:.2f}" for key in ("plain_seconds", "grammar_seconds")]
        table.add_row(row["kind"], str(row["requests"]), *milliseconds, f"{row['more']:+.1%}")
    Console().print(table)
    print(json.dumps({"model": options.model, "torch": torch.__version__, "steps": rows}))


def measure(engine: Engine, kind: str, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """Measure steps with and without grammars in turn. ``more``: the median of the rounds' ratios, less 1."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for grammar in (False, True) if number % 2 else (True, False):
            seconds = step_seconds(engine, kind, batch, steps, GRAMMAR if grammar else None)
            if number:  # the first round warms up
                found[grammar].append(seconds)
    ratios = [with_it / without for with_it, without in zip(found[True], found[False], strict=True)]
    return {
        "kind": kind,
        "requests": batch,
        "plain_seconds": statistics.median(found[False]),
        "grammar_seconds": statistics.median(found[True]),
        "more": statistics.median(ratios) - 1,
    }


def step_seconds(engine: Engine, kind: str, batch: int, steps: int, grammar: Grammar | None) -> float:
    """Return the median time of a decode step of ``batch`` requests."""
    params = SamplingParams(max_tokens=steps, grammar=grammar, ignore_eos=grammar is None, **KINDS[kind])
    for number in range(batch):
        prompt = [1000 + (number * 131 + at * 17) % 5000 for at in range(PROMPT_TOKENS)]
        engine.add(f"{kind}-{number}", prompt, params)
    seconds = []
    while engine.has_work:
        before = time.perf_counter()
        events = engine.step()
        if len(events) == batch:
            seconds.append(time.perf_counter() - before)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
