"""The scheduler's cost of a step does not depend on the number of waiting requests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from fgengine.engine import Engine
from fgengine.request import SamplingParams
from fgengine.scheduling.policy import policy_names

Build = Callable[..., Engine]


def calls_of_a_step(engine: Engine) -> int:
    """Return the number of function calls (Python and C) of three engine steps."""
    count = 0

    def profiled(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profiled)
    try:
        for _ in range(3):
            engine.step()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.slow
def test_the_calls_of_a_step_do_not_grow_with_the_waiting_requests(
    policy: str, symbolic_engine: Build
) -> None:
    counts = []
    for waiting in (40, 2000):
        engine = symbolic_engine(policy, device_blocks=30, max_tokens_per_batch=64)
        for i in range(waiting):
            params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
            engine.add(str(i), [1] * 9, params, user="abc"[i % 3])
        for _ in range(5):
            engine.step()
        counts.append(calls_of_a_step(engine))
    assert counts[1] < 1.5 * counts[0]
