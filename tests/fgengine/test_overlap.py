"""The next step is launched before the last one's tokens are read, and nothing else is different for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fgengine.engine import Engine
from fgengine.plan import StepPlan, StepResult
from fgengine.request import SamplingParams

Build = Callable[..., Engine]


def params(max_tokens: int, stop: tuple[int, ...] = ()) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_token_ids=stop)


def record(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is launched and collected, in order."""
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


def test_a_step_is_launched_before_the_one_before_is_collected(
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
        ("collect", 2),  # it ends by its length, which is known before its last token is
    ]
    assert not engine.has_work


def test_without_overlap_every_step_is_collected_at_once(
    symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = symbolic_engine()
    log = record(engine, monkeypatch)
    engine.generate([[1, 2, 3]], params(2))
    assert log == [("launch", 0), ("collect", 0), ("launch", 1), ("collect", 1)]


@pytest.mark.parametrize("device_blocks", [60, 16])
def test_a_stop_token_ends_a_request_that_is_planned_once_more(
    symbolic_engine: Build, device_blocks: int
) -> None:
    """The token of the step behind is thrown away, and so is its room."""
    prompts = [[i] * (3 + 4 * i) for i in range(6)]
    plain = symbolic_engine().generate(prompts, params(12))
    stops = tuple(request.tokens[request.prompt_len + 3 + i] for i, request in enumerate(plain))
    kinds = {}
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
        kinds[overlap] = [request.tokens for request in done]
        thrown_away = planned - stats["generated_tokens"]
        assert (
            3 <= thrown_away <= 6 if overlap else thrown_away == 0
        )  # one that is preempted just then has none
    assert kinds[True] == kinds[False]


def test_a_new_request_of_an_old_name_does_not_get_the_old_ones_token(symbolic_engine: Build) -> None:
    engine = symbolic_engine(overlap=True)
    engine.add("a", [1, 2, 3], params(5))
    engine.step()  # its first token is on its way
    assert engine.abort("a")
    again = engine.add("a", [4, 5, 6, 7, 8], params(4))
    while engine.has_work:
        engine.step()
    assert list(again.tokens) == symbolic_engine().generate([[4, 5, 6, 7, 8]], params(4))[0].tokens


def test_a_request_that_runs_is_not_preempted_by_ending(symbolic_engine: Build) -> None:
    engine = symbolic_engine(overlap=True)
    done = engine.generate([[1] * n for n in (3, 5, 7)], params(4))
    assert [request.preemptions for request in done] == [0, 0, 0]
    assert engine.stats()["preemptions"] == 0
    for request in done:
        assert request.seconds["queued"] == 0.0


def test_the_times_of_overlapping_steps_sum_to_the_walls(symbolic_engine: Build) -> None:
    engine = symbolic_engine("sj-mlfq", overlap=True, device_blocks=40)
    began = engine.clock.now()
    engine.generate([[1] * n for n in (3, 15, 7, 30)], params(20))
    work = engine.work
    assert work.work_steps == len(engine.runner.plans)  # type: ignore[attr-defined]
    assert work.model_seconds > 0.0
    assert work.seconds == pytest.approx(engine.clock.now() - began)
