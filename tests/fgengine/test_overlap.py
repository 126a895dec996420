"""With overlap, the next step is launched before the last one's tokens are read; results do not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fgengine.cost import CostModel, StepShape
from fgengine.engine import Engine
from fgengine.plan import StepPlan, StepResult
from fgengine.request import SamplingParams
from fgengine.server import messages
from fgengine.server.worker import _Loop

Build = Callable[..., Engine]


def params(max_tokens: int, stop: tuple[int, ...] = ()) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_token_ids=stop)


def record(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that records the launched and collected steps in order."""
    log: list[tuple[str, int]] = []
    launch = engine.runner.launch

    def recorded(plan: StepPlan) -> Callable[[], StepResult]:
        log.append(("launch", plan.step))
        collect = launch(plan)

        def collected() -> StepResult:
            log.append(("collect", plan.step))
            return collect()

        return collected

    monkeypatch.setattr(engine.runner, "launch", recorded)
    return log


def test_a_step_is_launched_before_the_last_one_is_collected(
    symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = symbolic_engine(overlap=True)
    log = record(engine, monkeypatch)
    request = engine.generate([[1, 2, 3]], params(3))[0]
    assert request.finish_reason == "length"
    assert log == [
        ("launch", 0),
        ("launch", 1),
        ("collect", 0),
        ("launch", 2),
        ("collect", 1),
        ("collect", 2),  # no further step: the end by length is known before the last token
    ]
    assert not engine.has_work


def test_without_overlap_every_step_is_collected_immediately(
    symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = symbolic_engine()
    log = record(engine, monkeypatch)
    engine.generate([[1, 2, 3]], params(2))
    assert log == [("launch", 0), ("collect", 0), ("launch", 1), ("collect", 1)]


@pytest.mark.parametrize("device_blocks", [60, 16])
def test_a_stop_token_ends_a_request_that_is_already_in_the_next_plan(
    symbolic_engine: Build, device_blocks: int
) -> None:
    """The token of the additional step is discarded, and its block is freed."""
    prompts = [[i] * (3 + 4 * i) for i in range(6)]
    plain = symbolic_engine().generate(prompts, params(12))
    stops = tuple(request.tokens[request.prompt_len + 3 + i] for i, request in enumerate(plain))
    tokens = {}
    for overlap in (False, True):
        engine = symbolic_engine("sj-mlfq", device_blocks=device_blocks, overlap=overlap)
        done = engine.generate(prompts, params(12, stops))
        assert {request.finish_reason for request in done} == {"stop"}
        while engine.has_work:
            engine.step()
        engine.scheduler.kv.check()
        stats = engine.stats()
        assert stats["free_device_blocks"] == device_blocks
        assert stats["finished"] == 6
        assert stats["generated_tokens"] == sum(request.num_generated for request in done)
        planned = sum(i.yields_token for p in engine.runner.plans for i in p.items)  # type: ignore[attr-defined]
        tokens[overlap] = [request.tokens for request in done]
        discarded = planned - stats["generated_tokens"]
        # A request that is preempted at its end has no additional token.
        assert 3 <= discarded <= 6 if overlap else discarded == 0
    assert tokens[True] == tokens[False]


def test_a_new_request_with_a_reused_id_gets_no_token_of_the_old_request(symbolic_engine: Build) -> None:
    engine = symbolic_engine(overlap=True)
    engine.add("a", [1, 2, 3], params(5))
    engine.step()  # launches the step of the first token
    assert engine.abort("a")
    again = engine.add("a", [4, 5, 6, 7, 8], params(4))
    while engine.has_work:
        engine.step()
    assert list(again.tokens) == symbolic_engine().generate([[4, 5, 6, 7, 8]], params(4))[0].tokens


def test_the_end_of_a_request_does_not_count_as_a_preemption(symbolic_engine: Build) -> None:
    engine = symbolic_engine(overlap=True)
    done = engine.generate([[1] * n for n in (3, 5, 7)], params(4))
    assert [request.preemptions for request in done] == [0, 0, 0]
    assert engine.stats()["preemptions"] == 0
    for request in done:
        assert request.seconds["queued"] == 0.0


def test_the_times_of_overlapping_steps_sum_to_the_wall_time(symbolic_engine: Build) -> None:
    engine = symbolic_engine("sj-mlfq", overlap=True, device_blocks=40)
    began = engine.clock.now()
    engine.generate([[1] * n for n in (3, 15, 7, 30)], params(20))
    work = engine.work
    assert work.work_steps == len(engine.runner.plans)  # type: ignore[attr-defined]
    assert work.model_seconds > 0.0
    assert work.seconds == pytest.approx(engine.clock.now() - began)


@pytest.mark.parametrize("overlap", [False, True])
def test_time_is_charged_to_the_running_phase(symbolic_engine: Build, overlap: bool) -> None:
    """The next step is planned while a prompt is computed; its phases begin only when it begins."""
    cost = CostModel(step=0.01, prefill_token=0.1)
    engine = symbolic_engine(overlap=overlap, cost=cost, max_batch_size=1)
    first, second = engine.generate([[1] * 5, [1] * 8], params(4))
    assert first.seconds == pytest.approx({"queued": 0.0, "swapped": 0.0, "prefill": 0.51, "decode": 0.03})
    assert second.seconds == pytest.approx({"queued": 0.54, "swapped": 0.0, "prefill": 0.81, "decode": 0.03})


def test_a_request_that_ends_while_left_out_of_a_plan_was_not_preempted(
    symbolic_engine: Build,
) -> None:
    alone = symbolic_engine().generate([[1] * 5], params(4))[0]
    engine = symbolic_engine("srpt", overlap=True, max_batch_size=1)
    request = engine.add("a", [1] * 5, params(40, (alone.tokens[-1],)))
    while request.num_generated < 3:
        engine.step()
    engine.add(
        "b", [2] * 3, params(1)
    )  # planned instead of a, while the last (fourth) token of a is computed
    engine.step()
    assert (request.finish_reason, request.num_generated) == ("stop", 4)
    while engine.has_work:
        engine.step()
    assert request.preemptions == engine.stats()["preemptions"] == 0


def test_the_time_counters_never_decrease(symbolic_engine: Build) -> None:
    """Time between steps counts only if the device waits; otherwise it passes while a step runs."""
    engine = symbolic_engine(overlap=True)
    began = engine.clock.now()
    for n in (3, 15, 7):
        engine.add(str(n), [1] * n, params(20))
    before = engine.stats()
    while engine.has_work:
        engine.step()
        if engine.has_work:
            engine.clock.advance(0.004)  # type: ignore[attr-defined]
        after = engine.stats()
        for name in ("model_seconds", "engine_seconds", "between_seconds"):
            assert after[name] >= before[name]
        before = after
    assert engine.work.seconds == pytest.approx(engine.clock.now() - began)
    steps = engine.runner.plans  # type: ignore[attr-defined]
    computed = sum(engine.runner.cost.step_seconds(StepShape.of_plan(plan)) for plan in steps)  # type: ignore[attr-defined]
    assert engine.work.model_seconds == pytest.approx(computed)


def test_idle_time_after_the_last_request_is_not_charged(symbolic_engine: Build) -> None:
    """After a stop token, the additional step is not processed yet, but no time is charged to it."""
    alone = symbolic_engine().generate([[1] * 5], params(4))[0]
    engine = symbolic_engine(overlap=True)
    engine.generate([[1] * 5], params(40, (alone.tokens[-1],)))
    assert engine.has_work
    engine.clock.advance(1000.0)  # type: ignore[attr-defined]
    engine.generate([[1] * 5], params(4))
    assert engine.work.seconds < 1.0


@pytest.mark.parametrize("overlap", [False, True])
def test_sjf_does_not_preempt_a_started_request(symbolic_engine: Build, overlap: bool) -> None:
    """A shorter request arrives during its first step."""
    engine = symbolic_engine("sjf", overlap=overlap, max_batch_size=1)
    longer = engine.add("longer", [1] * 5, params(40))
    engine.step()
    shorter = engine.add("shorter", [1] * 5, params(1))
    while not longer.finished:
        engine.step()
    assert (longer.preemptions, shorter.num_generated) == (0, 0)


@pytest.mark.parametrize("overlap", [False, True])
def test_vtc_does_not_preempt_for_fairness(symbolic_engine: Build, overlap: bool) -> None:
    """A user with less service sends a request during the first step of another user's request."""
    engine = symbolic_engine("vtc", overlap=overlap, max_batch_size=2)
    engine.add("a1", [1] * 5, params(60), user="a")
    engine.add("b1", [1] * 50, params(1), user="b")
    for _ in range(3):
        engine.step()
    other = engine.add("b2", [1] * 5, params(20), user="b")
    engine.step()
    engine.add("a2", [1] * 5, params(3), user="a")
    while not other.finished:
        engine.step()
    assert other.preemptions == 0


def test_a_chunk_leaves_no_token_for_requests_that_are_ending(symbolic_engine: Build) -> None:
    """A chunk leaves a token for each other request of the batch, except those that are ending."""
    engine = symbolic_engine(overlap=True, chunked_prefill=True, max_tokens_per_batch=8, max_batch_size=4)
    for id in "abc":
        engine.add(id, [1, 2], params(1))
    engine.step()
    engine.add("long", [1] * 20, params(2))
    engine.step()
    assert engine.runner.plans[-1].num_tokens == 8  # type: ignore[attr-defined]


def test_requests_that_are_ending_do_not_shorten_the_search(symbolic_engine: Build) -> None:
    """Of the next two requests, the first one waits for a copy, so the second must be found."""
    engine = symbolic_engine(overlap=True, max_batch_size=1)
    engine.add("ending", [1, 2], params(1))
    engine.step()
    for id in ("copied", "next"):
        engine.add(id, [1, 2, 3], params(4))
    kv = engine.scheduler.kv
    kv.grow("copied", 3)
    engine.copies.submit(kv.begin_offload("copied", 3))
    engine.step()
    planned = engine.runner.plans[-1].items  # type: ignore[attr-defined]
    assert [item.request.id for item in planned] == ["next"]


def test_the_server_sends_each_token_immediately_and_blocks_only_when_idle(
    symbolic_engine: Build,
) -> None:
    """One request is aborted while its step runs, one ends with a stop token, and one by its length."""
    engine = symbolic_engine(overlap=True)
    stop = symbolic_engine().generate([[1] * 5], params(4))[0].tokens[-1]
    script: list[messages.Command] = [
        messages.Add("stops", [1] * 5, params(40, (stop,)), 0.0),
        messages.Add("ends", [2] * 5, params(2), 0.0),
        messages.Add("leaves", [3] * 5, params(40), 0.0),
    ]
    sent: list[messages.Event] = []
    blocked: list[bool] = []

    class Inbox:
        """A queue of commands that records a call that would block."""

        def empty(self) -> bool:
            if len(engine.runner.plans) == 3 and "leaves" in engine.scheduler.requests:  # type: ignore[attr-defined]
                script.append(messages.Abort("leaves"))
            return not script

        def get(self) -> messages.Command | None:
            if script:
                return script.pop(0)
            blocked.append(engine.has_work or engine._running is not None)
            return None

    _Loop(engine, Inbox(), sent.append).run()  # type: ignore[arg-type]
    assert blocked == [False]
    tokens = [step.tokens for step in sent if isinstance(step, messages.Stepped)]
    assert [sorted(token.id for token in step) for step in tokens] == [
        ["ends", "leaves", "stops"],
        ["ends", "leaves", "stops"],
        ["stops"],  # "leaves" was aborted while its third token was computed
        ["stops"],
    ]
    last = {
        token.id: (number, token) for number, step in enumerate(tokens) for token in step if token.account
    }
    assert {id: (number, token.finish_reason) for id, (number, token) in last.items()} == {
        "ends": (1, "length"),
        "stops": (3, "stop"),
    }
    aborted = [event for event in sent if isinstance(event, messages.Aborted)]
    assert [event.id for event in aborted] == ["leaves"]
    assert sent.index(aborted[0]) < sent.index(messages.Stepped(tokens[2]))
