"""A machine made of symbols: memory that remembers whose token lies where, and copies that come late."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from fgengine import profile_cache, profiler
from fgengine.clock import VirtualClock
from fgengine.config import Admission, Offloading
from fgengine.cost import CostModel, StepShape
from fgengine.engine import Engine
from fgengine.kv.manager import KVManager
from fgengine.kv.transfer import Transfer
from fgengine.machine_load import MachineLoad
from fgengine.model.catalog import shape_of
from fgengine.physics import Ceilings
from fgengine.plan import StepPlan, StepResult
from fgengine.request import Request
from fgengine.scheduling.policy import Policy, PolicyContext, make_policy
from fgengine.scheduling.predictor import Noisy
from fgengine.scheduling.queue_limit import NO_LIMIT, QueueLimit
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits

Slot = tuple[str, int, int]


class SymbolicMachine:
    """Runner and copy engine over memory whose slots hold (request, position, token).

    A step fails unless every token it attends to lies where the block table says. A copy happens when it
    ends, not when it is submitted, in random order; what it leaves behind is poisoned. The last step's tokens
    are not looked up in the requests, where they need not stand yet. A step begins once it is launched and
    the one before has ended.
    """

    def __init__(self, clock: VirtualClock, cost: CostModel, block_size: int, seed: int, eager: bool) -> None:
        self.clock, self.cost, self.block_size, self.eager = clock, cost, block_size, eager
        self.random = random.Random(seed)
        self.device: dict[tuple[int, int], Slot] = {}
        self.host: dict[tuple[int, int], Slot] = {}
        self.flying: list[Transfer] = []
        self.plans: list[StepPlan] = []
        self.last_tokens: dict[Request, tuple[int, int]] = {}
        """Position and token that the last step gave."""
        self.busy_until = 0.0

    @staticmethod
    def next_token(tokens: list[int]) -> int:
        """Depends on every token before it, as a language model's does."""
        value = 17
        for token in tokens:
            value = (value * 31 + token + 7) % 1009
        return value

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        self.plans.append(plan)
        results, last_tokens = {}, {}
        for item in plan.items:
            request, table = item.request, item.blocks
            assert item.start == request.num_computed
            tokens = list(request.tokens)
            if request in self.last_tokens:
                position, token = self.last_tokens[request]
                tokens[position] = token
            for position in range(item.start):
                slot = (table[position // self.block_size], position % self.block_size)
                assert self.device.get(slot) == (request.id, position, tokens[position])
            for position in range(item.start, item.start + item.num_tokens):
                slot = (table[position // self.block_size], position % self.block_size)
                self.device[slot] = (request.id, position, tokens[position])
            assert item.yields_token == (item.start + item.num_tokens == request.num_known)
            if item.yields_token:
                results[request.id] = self.next_token(tokens)
                last_tokens[request] = (len(tokens), results[request.id])
        self.last_tokens = last_tokens
        seconds = self.cost.step_seconds(StepShape.of_plan(plan))
        end = self.busy_until = max(self.clock.now(), self.busy_until) + seconds

        def collect() -> StepResult:
            self.clock.advance_to(max(self.clock.now(), end))
            return StepResult(plan.step, seconds, results)

        return collect

    def submit(self, transfer: Transfer) -> None:
        self.flying.append(transfer)

    def done(self) -> list[Transfer]:
        if self.eager:
            return self._finish(list(self.flying))
        return self._finish([t for t in self.flying if self.random.random() < 0.3])

    def wait(self) -> list[Transfer]:
        self.clock.advance(0.001)
        return self._finish([self.random.choice(self.flying)] if self.flying else [])

    def close(self) -> None:
        self.flying.clear()

    def _finish(self, chosen: list[Transfer]) -> list[Transfer]:
        self.random.shuffle(chosen)
        for transfer in chosen:
            self.flying.remove(transfer)
            offload = transfer.direction == "offload"
            source, target = (self.device, self.host) if offload else (self.host, self.device)
            for old, new in zip(transfer.source, transfer.target, strict=True):
                for i in range(self.block_size):
                    target.pop((new, i), None)
                    if (old, i) in source:
                        # An upload leaves the host's copy as it is: the next offload counts on it.
                        target[new, i] = source.pop((old, i)) if offload else source[old, i]
        return chosen


COST = CostModel(
    step=0.01, prefill_request=0.001, prefill_token=0.0005, decode_request=0.0005, decode_context=1e-6
)


@pytest.fixture(scope="session")
def symbolic_engine() -> Callable[..., Engine]:
    def build(
        policy: str | type[Policy] = "fcfs",
        *,
        device_blocks: int = 64,
        host_blocks: int = 64,
        block_size: int = 4,
        max_batch_size: int = 4,
        max_tokens_per_batch: int = 64,
        max_model_len: int = 256,
        eos: frozenset[int] = frozenset(),
        offloading: Offloading = "reactive",
        admission: Admission = "guarded",
        chunked_prefill: bool = False,
        eager_copies: bool = False,
        starvation_limit: float = 30.0,
        seed: int = 0,
        cost: CostModel = COST,
        overlap: bool = False,
        queue: QueueLimit = NO_LIMIT,
    ) -> Engine:
        clock = VirtualClock()
        machine = SymbolicMachine(clock, cost, block_size, seed, eager_copies)
        context = PolicyContext(cost, starvation_limit, max_batch_size, Noisy(1.0))
        scheduler = Scheduler(
            make_policy(policy, context) if isinstance(policy, str) else policy(context),
            KVManager(device_blocks, host_blocks, block_size),
            Limits(max_tokens_per_batch, max_model_len, chunked_prefill, eos, block_bytes=1000),
            offloading=offloading,
            admission=admission,
            cost=cost,
            queue=queue,
        )
        return Engine(scheduler, machine, machine, clock, vocab_size=2000, overlap=overlap)

    return build


KNOWN_COST = CostModel(
    step=0.02,
    prefill_request=1e-3,
    prefill_token=3e-4,
    prefill_pair=2e-7,
    decode_request=5e-4,
    decode_context=4e-6,
    copy_bytes_per_second=1e9,
)


class InstantCopies:
    def __init__(self) -> None:
        self.finished: list[Transfer] = []

    def submit(self, transfer: Transfer) -> None:
        self.finished.append(transfer)

    def done(self) -> list[Transfer]:
        finished, self.finished = self.finished, []
        return finished

    wait = done

    def close(self) -> None:
        pass


class KnownRunner:
    """Takes what ``cost`` says, and remembers every plan."""

    cost = KNOWN_COST

    def __init__(self, speedup: float = 1.0, num_device_blocks: int = 400) -> None:
        self.shape = shape_of("smollm2-135m")
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.device_name, self.dtype_name = "abacus", "float32"
        self.block_size, self.block_bytes = 16, 16 * self.shape.kv_bytes_per_token(4)
        self.num_device_blocks, self.max_blocks = num_device_blocks, 10**9
        self.max_model_len, self.max_decodes, self.num_threads = 2048, 128, 2
        self.copies = InstantCopies()
        self.pool: Any = np.zeros((num_device_blocks, 1))
        self.speedup = speedup
        self.plans: list[StepPlan] = []

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        assert all(block < len(self.pool) for item in plan.items for block in item.blocks)
        return StepResult(plan.step, self.cost.step_seconds(StepShape.of_plan(plan)) / self.speedup)

    @contextmanager
    def trial_copies(self, num_blocks: int) -> Iterator[InstantCopies]:
        self.copied_blocks = num_blocks
        yield self.copies

    @contextmanager
    def larger_pool(self, num_blocks: int) -> Iterator[None]:
        own = self.pool
        self.pool = np.zeros((max(num_blocks, len(own)), 1))
        yield
        self.measured_in, self.pool = self.pool, own


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> list[Ceilings]:
    """Ceilings to be measured, in this order; the last again and again."""
    found = [Ceilings(40e9, 1e12)]
    monkeypatch.setattr(
        "fgengine.ceilings.measure_ceilings", lambda *_: found.pop(0) if len(found) > 1 else found[0]
    )
    return found


@pytest.fixture
def known_runner() -> type[KnownRunner]:
    """Makes runners whose steps take what is known."""
    return KnownRunner


@pytest.fixture
def other_load(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many cores other programs take; none until it is called."""
    found = [0.0]

    def between(before: object, after: object) -> MachineLoad:
        return MachineLoad(1.0, found[0], 0.0, 0.0, 3000.0, (("make", found[0]),) if found[0] else ())

    for module in (profiler, profile_cache):
        monkeypatch.setattr(module, "load_between", between)
        monkeypatch.setattr(module, "sample", lambda *own: None)

    def set_load(cores: float) -> None:
        found[0] = cores

    return set_load
