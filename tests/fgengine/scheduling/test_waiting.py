"""The longest wait of a job while many short jobs arrive."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from fgengine.engine import Engine
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.mlfq import MLFQ

Build = Callable[..., Engine]
CROWD, ALPHA, PROMPT, OUTPUT = 4, 0.5, 40, 30
COPY = 0.002
"""Maximum seconds to offload other jobs and upload a job's own KV: one millisecond each."""


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize("policy", ["mlfq", "sj-mlfq", "sj-mlfq-artifact"])
@pytest.mark.parametrize("budget", [64, 6])
@pytest.mark.parametrize(
    ("mode", "host_blocks"),
    [("reactive", 60), ("reactive", 0), ("proactive", 60), ("proactive", 0), ("recompute", 60), ("auto", 60)],
)
def test_no_job_waits_longer_than_alpha_and_one_turn_of_each_job(
    policy: str, mode: str, host_blocks: int, budget: int, symbolic_engine: Build
) -> None:
    """Upper bound of a wait: alpha + the running step + CROWD turns with their copies.

    There are at most CROWD jobs. A job that has waited alpha moves to the back of the first queue, after at
    most CROWD - 1 others. Each of them has one turn there. A turn is one iteration; if the KV was discarded
    or the prompt is chunked, it is all iterations up to the next token. Copies may precede it.

    The mode "none" has no such bound: nothing is evicted, so a job waits until others end. The jobs are
    served in less than alpha, so the backlog does not raise the promotion limit.
    """
    engine = symbolic_engine(
        policy,
        device_blocks=24,
        host_blocks=host_blocks,
        max_batch_size=1,
        max_tokens_per_batch=budget,
        offloading=mode,
        chunked_prefill=budget < 64,
        starvation_limit=ALPHA,
        eager_copies=True,
    )
    known = PROMPT + OUTPUT
    turn = math.ceil(known / budget) * (0.01 + 0.001 + 0.001) + known * 0.0005
    step = 0.01 + 0.001 + 0.0005 * min(budget, known)
    long = engine.add("long", list(range(PROMPT)), params(OUTPUT))
    ran: dict[Request, float] = {long: 0.0}
    longest, number = 0.0, 0
    while not long.finished and engine.clock.now() < 60.0:
        while len(engine.scheduler.requests) < CROWD:  # each needs half of the pool
            number += 1
            ran[engine.add(f"short{number}", [2] * PROMPT, params(3))] = engine.clock.now()
        engine.step()
        now = engine.clock.now()
        for request, since in list(ran.items()):
            longest = max(longest, now - since)
            if request.last_ran_at is not None and request.last_ran_at > since:
                ran[request] = request.last_ran_at
            if request.finished:
                del ran[request]
    assert long.finished
    assert longest <= ALPHA + step + CROWD * (turn + COPY)
    if host_blocks and mode != "recompute":  # otherwise memory is short, and jobs run in order of arrival
        assert longest > ALPHA


def longest_wait_in_overload(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Return the longest wait of any job since it last ran and the highest promotion limit, in seconds."""
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, MLFQ)
    # Disable pressure, under which jobs run in order of arrival: this tests the policy.
    monkeypatch.setattr(engine.scheduler.residency.pressure, "_is_short", lambda unfinished: False)
    jobs = [engine.add(str(i), [1] * 8, params(100 if i < 20 else 5)) for i in range(300)]
    longest = limit = 0.0
    while engine.has_work:
        engine.step()
        now = engine.clock.now()
        limit = max(limit, policy.promotion_limit)
        longest = max([longest, *(now - (job.last_ran_at or 0.0) for job in jobs if not job.finished)])
    assert all(job.num_generated == job.params.max_tokens for job in jobs)
    return longest, limit


def test_in_overload_no_job_waits_longer_than_the_time_of_the_backlog(
    symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit grows with the backlog. A promoted job then waits for the jobs in the first queue."""
    sizes = {"device_blocks": 4000, "max_batch_size": 4, "starvation_limit": 0.2}
    turns = 300 / 4 * 0.03  # one step for each job, in batches of 4, at most 30 ms each
    longest, limit = longest_wait_in_overload(symbolic_engine("sj-mlfq", **sizes), monkeypatch)
    artifact = symbolic_engine("sj-mlfq-artifact", **sizes)
    fixed_longest, fixed_limit = longest_wait_in_overload(artifact, monkeypatch)
    assert fixed_limit == 0.2 < limit / 5
    assert fixed_longest <= fixed_limit + turns
    assert fixed_longest < longest <= limit + turns


@pytest.mark.parametrize("policy", ["mlfq", "sj-mlfq"])
def test_a_promoted_job_gets_its_next_token_before_its_kv_is_discarded(
    policy: str, symbolic_engine: Build
) -> None:
    """With 13 known tokens and 6 per step, a request needs three steps for its next token.

    If it were demoted before that token, all requests would be discarded and recomputed forever.
    """
    engine = symbolic_engine(
        policy, device_blocks=4, host_blocks=0, max_tokens_per_batch=6, starvation_limit=0.1
    )
    requests = [engine.add(str(i), [i] * 9, params(8)) for i in range(5)]
    for _ in range(1000):
        if engine.has_work:
            engine.step()
    assert [request.num_generated for request in requests] == [8] * 5


@pytest.mark.parametrize("host_blocks", [4, 12, 100])
def test_auto_recomputes_no_more_than_reactive_if_copies_are_faster(
    host_blocks: int, symbolic_engine: Build
) -> None:
    recomputed: list[int] = []
    for mode in ("reactive", "auto"):
        engine = symbolic_engine(
            "sj-mlfq",
            device_blocks=30,
            host_blocks=host_blocks,
            max_batch_size=2,
            offloading=mode,
            starvation_limit=0.3,
            eager_copies=True,
        )
        engine.generate([[k] * (20 + k) for k in range(12)], params(20))
        recomputed.append(engine.stats()["recomputed_tokens"])
    assert recomputed[1] <= recomputed[0]
    assert (recomputed[0] > 0) == (host_blocks < 100)
