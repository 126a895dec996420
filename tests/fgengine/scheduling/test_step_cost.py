"""What a step costs must not hang on how many wait; and no setting is there for nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import fgengine
from fgengine.config import EngineConfig
from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import PolicyContext, make_policy, policy_names
from fgengine.scheduling.predictor import Noisy
from fgengine.scheduling.scheduler import Limits, Scheduler

COST = CostModel(step=0.01, prefill_token=0.0005, decode_request=0.0005)
BATCH = 4


@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.parametrize("blocks", [20, 10_000])
def test_a_step_looks_at_no_more_than_two_batches_of_the_order(policy: str, blocks: int) -> None:
    made = make_policy(policy, PolicyContext(COST, max_batch_size=BATCH, predictor=Noisy(1.0)))
    looked = 0
    order = made.order

    def counting(now: float) -> Iterator[Request]:
        nonlocal looked
        for request in order(now):
            looked += 1
            yield request

    made.order = counting  # type: ignore[method-assign]
    scheduler = Scheduler(made, KVManager(blocks, 10, 16), Limits(BATCH, 256, 1000))
    for i in range(500):
        params = SamplingParams(max_tokens=1 + i % 50, temperature=0.0, ignore_eos=True)
        scheduler.add(Request.new(str(i), [0] * (1 + i % 90), params, 0.0), 0.0)
    now = 0.0
    for _ in range(60):
        looked = 0
        plan = scheduler.schedule(now)
        assert looked <= 2 * BATCH + 1
        scheduler.copied([*plan.offloads, *plan.uploads])
        now += 0.05
        if plan.items:
            scheduler.leap(1, 0.05, now)


def test_every_setting_is_read() -> None:
    package = Path(fgengine.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    unread = [f.name for f in fields(EngineConfig) if not re.search(rf"\bconfig\.{f.name}\b", code)]
    assert unread == []
