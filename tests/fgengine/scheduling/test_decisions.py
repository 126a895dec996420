"""Every policy in every mode makes the decisions stored in ``decisions.json``: steps, blocks, copies.

The file holds a hash of each run. A change that must not affect decisions must not change this file. With
``FGBENCH_STORE_DECISIONS=1`` the test stores the hashes of the current code.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest

from fgengine.clock import VirtualClock
from fgengine.config import Offloading
from fgengine.cost import CostModel, StepShape
from fgengine.engine import Engine
from fgengine.kv.transfer import Transfer
from fgengine.plan import StepPlan, StepResult
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import policy_names
from fgengine.simulation.cluster import Cluster
from fgengine.simulation.copying import SimulatedCopyEngine
from fgengine.simulation.replica import Replica
from fgengine.simulation.routing import make_router

Build = Callable[..., Engine]
STORED = Path(__file__).with_name("decisions.json")
STORE = os.environ.get("FGBENCH_STORE_DECISIONS") == "1"
COST = CostModel(
    step=0.01,
    prefill_request=0.001,
    prefill_token=0.0005,
    decode_request=0.0005,
    decode_context=1e-6,
    copy_bytes_per_second=6e5,
)
"""With these costs mode auto makes both choices, and a copy takes one or two steps."""
BLOCK_BYTES = 1000
"""The same value as in ``symbolic_engine``."""
TOKENS = 101
"""The vocabulary: tokens are 0 .. 100."""
EOS = frozenset(range(0, TOKENS, 9))
REQUESTS = 24
VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {},
    "chunked": {"chunked_prefill": True},
    "overlapped": {"overlap": True},
    "overlapped and chunked": {"overlap": True, "chunked_prefill": True},
}
HOST_BLOCKS = (60, 8)
"""Host blocks of the two machines of each variant: enough for all evicted KV, and nearly none."""


@dataclass(frozen=True)
class Arrival:
    """A request of a trace."""

    at: float
    prompt: int
    max_tokens: int
    user: str
    ignore_eos: bool
    aborted_after: int | None
    """Steps after its arrival at which it is aborted if it has not ended; None: it is not aborted."""

    def request(self, index: int) -> Request:
        params = SamplingParams(max_tokens=self.max_tokens, temperature=0.0, ignore_eos=self.ignore_eos)
        tokens = [(index + k) % TOKENS for k in range(self.prompt)]
        return Request.new(str(index), tokens, params, self.at, self.user)


def trace(seed: str) -> list[Arrival]:
    source, now, arrivals = random.Random(seed), 0.0, []
    for _ in range(REQUESTS):
        now += source.choice([0.0, 0.01, 0.05, 0.2])
        arrivals.append(
            Arrival(
                at=now,
                prompt=source.choice([1, 6, 14, 38]),
                max_tokens=source.choice([1, 4, 12, 24]),
                user=source.choice("aab"),
                ignore_eos=source.random() < 0.7,
                aborted_after=source.randrange(12) if source.random() < 0.1 else None,
            )
        )
    return arrivals


class Machine:
    """A runner whose steps take the time that the cost model predicts, one after another."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.busy_until = 0.0

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        seconds = COST.step_seconds(StepShape.of_plan(plan))
        end = self.busy_until = max(self.clock.now(), self.busy_until) + seconds
        tokens = {
            item.request.id: (31 * int(item.request.id) + 17 * (item.start + item.num_tokens)) % TOKENS
            for item in plan.items
            if item.yields_token
        }

        def collect() -> StepResult:
            self.clock.advance_to(max(self.clock.now(), end))
            return StepResult(plan.step, seconds, tokens)

        return collect


def serve(engine: Engine, arrivals: list[Arrival]) -> list[Request]:
    """Serve the trace and return its requests after all have ended."""
    clock, scheduler = engine.clock, engine.scheduler
    assert isinstance(clock, VirtualClock)
    engine.runner, engine.copies = (
        Machine(clock),
        SimulatedCopyEngine(clock, BLOCK_BYTES, COST.copy_bytes_per_second),
    )
    requests: list[Request] = []
    aborts: list[tuple[int, str]] = []
    step = 0
    while len(requests) < len(arrivals) or engine.has_work:
        if not engine.has_work:
            clock.advance_to(max(clock.now(), arrivals[len(requests)].at))
        while len(requests) < len(arrivals) and arrivals[len(requests)].at <= clock.now():
            arrival = arrivals[len(requests)]
            requests.append(arrival.request(len(requests)))
            scheduler.add(requests[-1], clock.now())
            if arrival.aborted_after is not None:
                aborts.append((step + arrival.aborted_after, requests[-1].id))
        for _, id in [due for due in aborts if due[0] == step]:
            engine.abort(id)
        engine.step()
        step += 1
    scheduler.kv.check()
    return requests


def record_plans(scheduler: Any) -> list[Any]:
    """Return a list that records all plans from now on. It copies block tables, because they grow later."""
    plans: list[Any] = []
    schedule = scheduler.schedule

    def recorded(now: float) -> StepPlan:
        plan: StepPlan = schedule(now)
        items = [(i.request.id, i.start, i.num_tokens, list(i.blocks), i.yields_token) for i in plan.items]
        plans.append([plan.step, items, list(map(copied, plan.uploads)), list(map(copied, plan.offloads))])
        return plan

    scheduler.schedule = recorded
    return plans


def copied(transfer: Transfer) -> list[Any]:
    return [transfer.id, transfer.request_id, transfer.direction, *transfer.source, *transfer.target]


def outcome(request: Request) -> list[Any]:
    account = {name: round(value, 6) for name, value in request.accounting().items()}
    return [request.id, list(request.tokens), request.finish_reason, account]


def hash_of(found: Any) -> str:
    return sha256(json.dumps(found).encode()).hexdigest()[:16]


def engines(build: Build, policy: str, mode: str, variant: str) -> Iterator[tuple[Engine, list[Arrival]]]:
    for number, host_blocks in enumerate(HOST_BLOCKS):
        engine = build(
            policy,
            offloading=mode,
            device_blocks=22,
            host_blocks=host_blocks,
            max_batch_size=4,
            max_tokens_per_batch=24,
            starvation_limit=0.3,
            eos=EOS if variant != "leaps" else frozenset(),
            cost=COST,
            **VARIANTS.get(variant, {}),
        )
        yield engine, trace(f"{variant} {number}")


def decisions(build: Build, policy: str, mode: str, variant: str) -> str:
    found: list[Any] = []
    for engine, arrivals in engines(build, policy, mode, variant):
        plans = record_plans(engine.scheduler)
        requests = serve(engine, arrivals)
        found += [plans, [outcome(request) for request in requests], asdict(engine.scheduler.counters)]
    return hash_of(found)


def advances(build: Build, policy: str, mode: str) -> str:
    """Return a hash of token times and outcomes of a simulation that takes several steps at once."""
    found: list[Any] = []
    for engine, arrivals in engines(build, policy, mode, "leaps"):
        replica = Replica(engine.scheduler, COST, keep_token_times=True)
        requests = [arrival.request(index) for index, arrival in enumerate(arrivals)]
        for ending in Cluster([replica], make_router("round-robin")).serve(iter(requests)):
            found.append([outcome(ending.request), [round(time, 6) for time in ending.token_times]])
        found.append(asdict(replica.scheduler.counters))
    return hash_of(found)


@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.slow
def test_decisions_equal_the_stored_ones(symbolic_engine: Build, policy: str) -> None:
    got = {}
    for mode in get_args(Offloading):
        for variant in VARIANTS:
            got[f"{policy}, {mode}, {variant}"] = decisions(symbolic_engine, policy, mode, variant)
        got[f"{policy}, {mode}, leaps"] = advances(symbolic_engine, policy, mode)
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if STORE:
        STORED.write_text(json.dumps(stored | got, indent=1) + "\n")
        return
    assert [name for name, found in got.items() if stored.get(name) != found] == []


def test_the_traces_cover_preemption_offloading_recompute_stop_and_abort(symbolic_engine: Build) -> None:
    sums: dict[str, float] = {}
    reasons = set()
    for mode in ("reactive", "proactive", "auto", "recompute"):
        for engine, arrivals in engines(symbolic_engine, "mlfq", mode, "plain"):
            reasons |= {request.finish_reason for request in serve(engine, arrivals)}
            for name, count in asdict(engine.scheduler.counters).items():
                sums[name] = sums.get(name, 0) + count
    assert reasons == {"length", "stop", "abort"}
    assert min(sums.values()) > 0, sums
