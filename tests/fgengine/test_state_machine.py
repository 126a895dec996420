"""Random clients, clocks and copies, with every policy and offloading mode.

FGBENCH_NIGHTLY=1 runs at least ``NIGHTLY_STEPS`` engine steps for each policy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fgengine.engine import Engine
from fgengine.kv.manager import Where
from fgengine.plan import PlanItem
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import policy_names

Build = Callable[..., Engine]
MODES = ["none", "reactive", "proactive", "blocking", "recompute", "auto"]
NIGHTLY = os.environ.get("FGBENCH_NIGHTLY") == "1"
NIGHTLY_STEPS = 10_000
EXAMPLES, RULES = (20, 100) if NIGHTLY else (5, 40)
"""Numbers for each policy, offloading mode, and chunked prefill on and off."""
EOS = frozenset(range(0, 1009, 9))
"""EOS tokens, of 1009 tokens: with these, most answers end before their maximum length."""
MAX_STEPS_TO_A_TOKEN = 1000
"""Limit of the steps until any request gets a token. The longest request has 60 tokens and a step computes at
least one, so a token needs the steps of a few prompts, even if KV is discarded. The maximum observed is
116."""


class Unruly(RuleBasedStateMachine):
    """Adds, aborts and serves requests in random order; checks the accounting after every operation."""

    def __init__(self, build: Build, policy: str, mode: str, chunked: bool, steps: list[int]) -> None:
        super().__init__()
        self.make = lambda **sizes: build(policy, offloading=mode, chunked_prefill=chunked, **sizes)
        self.name = f"{policy}, offloading {mode}, chunked {chunked}"
        self.steps = steps
        """A list with one number: the engine steps of all machines that share it."""
        self.requests: list[Request] = []
        self.due: Sequence[PlanItem] | None = None
        """The items of the overlapping step whose result is not processed yet."""

    @initialize(
        device_blocks=st.integers(15, 30),  # the longest request needs 15
        host_blocks=st.sampled_from([0, 1, 5, 15, 100]),
        max_batch_size=st.integers(1, 6),
        max_tokens_per_batch=st.sampled_from([1, 3, 6, 16, 64]),
        starvation_limit=st.sampled_from([0.02, 0.2, 30.0]),
        seed=st.integers(0, 1000),
        overlap=st.booleans(),
        eos=st.sampled_from([frozenset(), EOS]),
    )
    def start(self, **sizes: Any) -> None:
        note(self.name)
        self.engine = self.make(**sizes)
        self.machine = self.engine.runner
        self.limits = self.engine.scheduler.limits

    @rule(
        prompt=st.integers(1, 40),
        max_tokens=st.integers(1, 20),
        user=st.sampled_from("abc"),
        ignore_eos=st.booleans(),
    )
    def add(self, prompt: int, max_tokens: int, user: str, ignore_eos: bool) -> None:
        number = len(self.requests)
        tokens = [(number * 7 + k) % 90 for k in range(prompt)]
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=ignore_eos)
        self.requests.append(self.engine.add(str(number), tokens, params, user=user))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        was_running = not request.finished
        assert self.engine.abort(request.id) == was_running
        assert not self.engine.abort(request.id)

    @rule(times=st.integers(1, 8))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.one_step()

    @precondition(lambda self: self.machine.flying)
    @rule(data=st.data())
    def copies_finish(self, data: st.DataObject) -> None:
        flying = self.machine.flying
        chosen = data.draw(st.lists(st.sampled_from(flying), unique_by=id, min_size=1))
        self.engine.scheduler.copied(self.machine._finish(chosen))

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.5, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.engine.clock.advance(seconds)

    def one_step(self) -> None:
        plans = self.machine.plans
        before, over = len(plans), {request for request in self.requests if request.finished}
        events = self.engine.step()  # raises when the scheduler is stuck
        self.steps[0] += 1
        items = plans[-1].items if len(plans) > before else None
        if items is not None:
            ids = {item.request.id for item in items}
            assert len(ids) == len(items) <= self.engine.scheduler.max_batch_size
            assert 1 <= plans[-1].num_tokens <= self.limits.max_tokens_per_batch
            assert not ids & {transfer.request_id for transfer in self.machine.flying}
        if self.engine.overlap:
            items, self.due = self.due, items
        expected = [item.request for item in items or () if item.yields_token and item.request not in over]
        assert [event.request for event in events] == expected

    @invariant()
    def accounting_is_correct(self) -> None:
        scheduler, now = self.engine.scheduler, self.engine.clock.now()
        scheduler.kv.check()
        assert set(scheduler.requests.values()) == {r for r in self.requests if not r.finished}
        for request in self.requests:
            self.is_in_one_place(request)
            spent = list(request.seconds.values())
            end = request.phase_since
            if not request.finished:
                spent.append(now - request.phase_since)
                end = now
            assert min(spent) >= 0.0
            assert sum(spent) == pytest.approx(end - request.arrival, abs=1e-9)

    def is_in_one_place(self, request: Request) -> None:
        scheduler = self.engine.scheduler
        where = scheduler.kv.where(request.id)
        assert (request.id in scheduler.residency._ranking) == (where is Where.DEVICE)
        room = scheduler.kv.num_blocks(request.id) * scheduler.kv.block_size
        assert request.num_computed <= room or request.finished or request.id in scheduler.in_flight.ending
        if request.finished:
            assert where is Where.NOWHERE
            assert request.id not in scheduler._running
            assert request.id not in scheduler._delayed

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        counters = self.engine.scheduler.counters
        tokens, idle_steps = -1, 0
        while self.engine.has_work:  # can take thousands of steps with small pools and budgets
            self.one_step()
            idle_steps = 0 if counters.generated_tokens > tokens else idle_steps + 1
            tokens = counters.generated_tokens
            assert idle_steps < MAX_STEPS_TO_A_TOKEN, "no request makes progress"
        self.accounting_is_correct()
        stats = self.engine.stats()
        assert stats["finished"] + stats["aborted"] == len(self.requests)
        assert stats["free_device_blocks"] == stats["num_device_blocks"]
        assert stats["free_host_blocks"] == stats["num_host_blocks"]
        for request in self.requests:
            expected = list(request.tokens[: request.prompt_len])
            while len(expected) < len(request.tokens):
                expected.append(self.machine.next_token(expected))
            assert request.tokens == expected
            self.ends_in_time(request)

    def ends_in_time(self, request: Request) -> None:
        answer = request.tokens[request.prompt_len :]
        ends = frozenset() if request.params.ignore_eos else self.limits.eos_token_ids
        assert not ends.intersection(answer[:-1])
        if request.finish_reason != "abort":
            stopped = answer[-1] in ends
            assert request.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(answer) == request.params.max_tokens


@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.timeout(3600 if NIGHTLY else 60)
@pytest.mark.slow
def test_after_any_operations_the_accounting_is_correct_and_all_are_served(
    policy: str, symbolic_engine: Build
) -> None:
    steps = [0]
    for mode, chunked in product(MODES, (False, True)):
        run_state_machine_as_test(
            lambda mode=mode, chunked=chunked: Unruly(symbolic_engine, policy, mode, chunked, steps),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=RULES,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"{policy}: {steps[0]:,} engine steps")  # pytest -rP shows it
    assert steps[0] >= (NIGHTLY_STEPS if NIGHTLY else 1000)
