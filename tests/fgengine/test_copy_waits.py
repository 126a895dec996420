"""Time in which the device is idle because every request waits for a copy is counted exactly once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fgengine.engine import Engine
from fgengine.request import SamplingParams

Build = Callable[..., Engine]


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def crowded(symbolic_engine: Build, overlap: bool) -> Engine:
    """Return an engine that offloads a long request for short ones and later uploads it when it is alone.

    Each check of a copy that is not done takes 1 ms.
    """
    engine = symbolic_engine("srpt", overlap=overlap, device_blocks=8, max_batch_size=2)
    engine.add("long", [1] * 20, params(12))
    for _ in range(4):
        engine.step()
    for n in range(4):
        engine.add(f"short-{n}", [2] * 12, params(4))
    return engine


@pytest.mark.parametrize("overlap", [False, True])
def test_waits_for_copies_count_as_neither_computing_nor_overhead(
    symbolic_engine: Build, overlap: bool
) -> None:
    engine = crowded(symbolic_engine, overlap)
    waits = 0
    original_wait = engine.copies.wait

    def counted() -> object:
        nonlocal waits
        waits += 1
        return original_wait()

    engine.copies.wait = counted  # type: ignore[assignment, method-assign]
    while engine.has_work:
        engine.step()
    assert engine.stats()["offloaded_blocks"] > 0
    assert waits > 0
    assert engine.work.copy_wait_seconds == pytest.approx(0.001 * waits)
    assert engine.stats()["copy_wait_seconds"] == engine.work.copy_wait_seconds
    assert engine.work.seconds + engine.work.copy_wait_seconds == pytest.approx(engine.clock.now())


@pytest.mark.parametrize("overlap", [False, True])
def test_time_after_a_wait_counts_as_time_between_steps(symbolic_engine: Build, overlap: bool) -> None:
    """The server exchanges messages after every call of ``step``, also if it only waited."""
    engine = crowded(symbolic_engine, overlap)
    while engine.has_work:
        engine.step()
        if engine.scheduler.has_work:
            engine.clock.advance(0.004)  # type: ignore[attr-defined]
    assert engine.work.copy_wait_seconds > 0.0
    assert engine.work.seconds + engine.work.copy_wait_seconds == pytest.approx(engine.clock.now())


def test_copies_of_ended_requests_do_not_count_as_waits(symbolic_engine: Build) -> None:
    """Copies of aborted requests must end before their blocks are free, but they delay no request."""
    engine = crowded(symbolic_engine, overlap=False)
    plan = engine.scheduler.schedule(engine.clock.now())
    assert plan.offloads
    for transfer in plan.offloads:
        engine.copies.submit(transfer)
    for id in list(engine.scheduler.requests):
        engine.abort(id)
    began = engine.clock.now()
    while engine.has_work:
        engine.step()
    assert engine.clock.now() > began
    assert engine.work.copy_wait_seconds == 0.0
