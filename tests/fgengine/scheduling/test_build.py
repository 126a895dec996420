"""``Scheduler.build``, which creates the scheduler for the engine and for simulations."""

from __future__ import annotations

import pytest

from fgengine.config import EngineConfig
from fgengine.cost import CostModel
from fgengine.kv.sizing import Pools
from fgengine.scheduling.predictor import Oracle
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits

COST = CostModel(step=0.01, prefill_token=0.0005, decode_request=0.0005)
CONFIG = EngineConfig(
    policy="sjf",
    starvation_limit=3.0,
    predictor=f"{__name__}:Closes",
    max_batch_size=5,
    max_tokens_per_batch=70,
    chunked_prefill=True,
    block_size=8,
    max_queue=9,
    max_queue_tokens=100,
    queue_timeout=2.0,
)
CLOSED = []


class Closes(Oracle):
    """A predictor that records when it is closed."""

    def close(self) -> None:
        CLOSED.append(self)


def build(config: EngineConfig, cost: CostModel | None = COST) -> Scheduler:
    return Scheduler.build(
        config,
        Pools(30, 40),
        block_bytes=6,
        max_model_len=200,
        eos_token_ids=[1, 2],
        cost=cost,
        speed=lambda: pytest.fail("the limits of the queue are set"),
    )


def test_build_passes_every_setting_on() -> None:
    scheduler = build(CONFIG)
    assert scheduler.limits == Limits(70, 200, True, frozenset({1, 2}), 6)
    context = scheduler.policy.context
    assert (context.cost, context.starvation_limit, context.max_batch_size) == (COST, 3.0, 5)
    assert isinstance(context.predictor, Closes)
    assert context.name == "sjf"
    assert scheduler.max_batch_size == 5
    kv, limit = scheduler.kv, scheduler.queue.limit
    assert (kv.device.num_blocks, kv.host.num_blocks, kv.block_size) == (30, 40, 8)
    assert (limit.requests, limit.prompt_tokens, limit.timeout) == (9, 100, 2.0)


def test_a_predictor_is_created_only_if_the_policy_needs_it_and_closed_with_the_scheduler() -> None:
    fcfs = build(EngineConfig(policy="fcfs", predictor=CONFIG.predictor, max_queue=9, max_queue_tokens=1))
    assert fcfs.policy.context.predictor is None
    fcfs.close()
    assert CLOSED == []
    build(CONFIG).close()
    assert len(CLOSED) == 1


def test_a_policy_or_mode_that_needs_a_profile_is_refused_without_one() -> None:
    with pytest.raises(ValueError, match="policy 'sjf' needs a profile"):
        build(CONFIG, cost=None)
    with pytest.raises(ValueError, match="offloading auto needs a profile"):
        build(EngineConfig(policy="fcfs", offloading="auto", max_queue=9, max_queue_tokens=1), cost=None)
