"""In any order of operations, tokens do not change, blocks are never lost, and no request waits forever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgengine.engine import Engine, RequestRefused
from fgengine.request import SamplingParams

Build = Callable[..., Engine]
POLICIES = ["fcfs", "mlfq", "sj-mlfq", "srpt"]
EXAMPLES = int(os.environ.get("FGBENCH_EXAMPLES", "40"))

lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12)


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.slow
def test_tokens_do_not_depend_on_other_requests_memory_or_copies(
    policy: str, symbolic_engine: Build, data: st.DataObject
) -> None:
    """Adds, aborts and steps happen in any order; copies end late and in any order."""
    draw = data.draw
    work = draw(lengths)
    engine = symbolic_engine(
        policy,
        device_blocks=draw(st.integers(15, 40)),  # the longest request needs 15
        host_blocks=draw(st.sampled_from([0, 3, 15, 100])),
        block_size=4,
        max_batch_size=draw(st.integers(1, 6)),
        max_tokens_per_batch=draw(st.sampled_from([3, 16, 64])),
        offloading=draw(st.sampled_from(["reactive", "proactive"])),
        starvation_limit=draw(st.sampled_from([0.02, 0.2, 30.0])),
        seed=draw(st.integers(0, 1000)),
    )
    waiting = [(str(i), [(i * 7 + k) % 90 for k in range(p)], n) for i, (p, n) in enumerate(work)]
    requests = []
    for _ in range(5000):
        if not waiting and not engine.has_work:
            break
        action = draw(st.sampled_from(["add", "step", "step", "step", "abort"])) if waiting else "step"
        if action == "add":
            id, prompt, n = waiting.pop()
            requests.append(engine.add(id, prompt, params(n)))
        elif action == "abort" and requests:
            engine.abort(draw(st.sampled_from(requests)).id)
        else:
            engine.step()
        engine.scheduler.kv.check()
    else:
        pytest.fail("5,000 steps did not finish a dozen small requests")
    stats = engine.stats()
    assert stats["free_device_blocks"] == stats["num_device_blocks"]
    assert stats["free_host_blocks"] == stats["num_host_blocks"]
    for request in requests:
        expected = list(request.tokens[: request.prompt_len])
        while len(expected) < len(request.tokens):
            expected.append(engine.runner.next_token(expected))  # type: ignore[attr-defined]
        assert request.tokens == expected
        if request.finish_reason != "abort":
            assert request.num_generated == request.params.max_tokens


@pytest.mark.parametrize("policy", ["mlfq", "sj-mlfq"])
def test_no_request_waits_longer_than_the_limit_and_a_round_of_the_first_queue(
    policy: str, symbolic_engine: Build
) -> None:
    """Without promotion, a stream of short jobs would starve the long one forever."""
    engine = symbolic_engine(policy, device_blocks=200, max_batch_size=1, starvation_limit=0.5)
    long = engine.add("long", [1] * 20, params(40))
    longest, last, i = 0.0, 0.0, 0
    while not long.finished:
        if len(engine.scheduler.requests) < 4:
            i += 1
            engine.add(f"short{i}", [2] * 3, params(1))
        before = long.num_computed
        engine.step()
        now = engine.clock.now()
        if long.num_computed != before or long.finished:
            longest, last = max(longest, now - last), now
    # After its promotion it waits for at most the jobs already in the first queue, one iteration each.
    assert longest <= 0.5 + 5 * 0.0135 + 0.03
    assert longest > 0.5  # it waited for the limit, so the promotion was needed


def test_the_same_run_makes_the_same_decisions_again(symbolic_engine: Build) -> None:
    def plans() -> list[list[tuple[str, int, int]]]:
        engine = symbolic_engine("sj-mlfq", device_blocks=30, host_blocks=20, seed=5)
        engine.generate([[i] * (3 + 5 * i) for i in range(9)], params(15))
        return [
            [(i.request.id, i.start, i.num_tokens) for i in p.items]
            for p in engine.runner.plans  # type: ignore[attr-defined]
        ]

    first, second = plans(), plans()
    assert first == second
    assert len(first) > 15


def test_an_exception_in_a_step_is_raised(symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = symbolic_engine()
    engine.add("a", [1], params(3))
    monkeypatch.setattr(engine.runner, "launch", lambda plan: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()


def test_the_pure_modules_import_no_torch_and_no_io() -> None:
    modules = (
        "fgengine, fgengine.config, fgengine.cost, fgengine.engine, fgengine.plan, fgengine.request, "
        "fgengine.scheduling.scheduler, fgengine.scheduling.mlfq, fgengine.scheduling.srpt, "
        "fgengine.scheduling.fcfs, fgengine.kv.manager, fgengine.simulation.runner, "
        "fgengine.simulation.copying"
    )
    code = (
        f"import sys, {modules}\n"
        "bad = {'torch', 'transformers', 'numpy', 'aiohttp', 'fgbench'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("device_blocks", "longest"), [(5, 21), (64, 256)])
def test_max_model_len_is_the_longest_request_that_is_accepted(
    symbolic_engine: Build, device_blocks: int, longest: int
) -> None:
    engine = symbolic_engine("fcfs", device_blocks=device_blocks, block_size=4, max_model_len=256)
    assert engine.max_model_len == longest
    with pytest.raises(RequestRefused):
        engine.add("too long", [1] * 10, params(longest - 9))
    engine.add("fits", [1] * 10, params(longest - 10))
    while engine.has_work:
        engine.step()
    assert engine.stats()["finished"] == 1


def test_stats_contain_request_counts_levels_and_settings(symbolic_engine: Build) -> None:
    engine = symbolic_engine("mlfq", max_batch_size=2)
    for i in range(3):
        engine.add(str(i), [1, 2, 3], params(4))
    engine.step()
    stats = engine.stats()
    assert (stats["running"], stats["waiting"], stats["swapped"], stats["max_batch_size"]) == (2, 1, 0, 2)
    assert sum(level["requests"] for level in stats["levels"]) == 3
    assert set(stats["levels"][0]) == {"name", "requests", "quantum"}
    assert stats["uptime_seconds"] == engine.clock.now() > 0
    assert stats["block_bytes"] == 1000
    assert json.loads(json.dumps(stats)) == stats
    assert symbolic_engine("fcfs").stats()["levels"] == []
