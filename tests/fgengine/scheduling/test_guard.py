"""A policy that breaks its contract raises an error with its name and the reason, before any computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from fgengine.engine import Engine
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.guard import Guarded
from fgengine.scheduling.policy import (
    Level,
    Policy,
    PolicyContext,
    PolicyError,
    Priority,
    SortedPolicy,
    make_policy,
    policy_names,
)

Build = Callable[..., Engine]


class Good(Policy):
    """A correct policy (order of arrival). The broken policies below differ in one method."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self.requests: dict[str, Request] = {}
        self.asked = 0

    def add(self, request: Request, now: float) -> None:
        self.requests[request.id] = request

    def remove(self, request: Request) -> None:
        del self.requests[request.id]

    def order(self, now: float) -> Iterator[Request]:
        return iter(self.requests.values())

    def priority(self, request: Request) -> Priority:
        return (float(request.id),)


class Repeats(Good):
    def order(self, now: float) -> Iterator[Request]:
        yield from self.requests.values()
        yield from self.requests.values()


class Contradicts(Good):
    def priority(self, request: Request) -> Priority:
        return (-float(request.id),)


class Equal(Good):
    def priority(self, request: Request) -> Priority:
        return (1.0,)


class NotANumber(Good):
    def priority(self, request: Request) -> Priority:
        return (0.0, math.nan)


class NotANumberLater(Good):
    def priority(self, request: Request) -> Priority:
        return (0.0, math.nan if request.id == "2" else float(request.id))


class NanKeys(SortedPolicy):
    def key(self, request: Request) -> Priority:
        return (math.nan,)


class Strangers(Good):
    def order(self, now: float) -> Iterator[Request]:
        yield Request.new("9", [1], SamplingParams(), 0.0)


class NoRequests(Good):
    def order(self, now: float) -> Iterator[Request]:
        return iter(self.requests)  # type: ignore[arg-type]


class Remembers(Good):
    def remove(self, request: Request) -> None:
        """Do nothing: ``order`` continues to yield the ended request."""


class GivesNone(Good):
    def order(self, now: float) -> Iterator[Request]:
        return iter(())


class NoIterator(Good):
    def order(self, now: float) -> Iterator[Request]:
        return None  # type: ignore[return-value]


class NoTuple(Good):
    def priority(self, request: Request) -> Priority:
        return None  # type: ignore[return-value]


REASONS = [
    (Repeats, "its order gives request '[0-3]' (twice|before '[0-3]', but its priority)"),
    (Contradicts, "its order gives request '0' before '1', but its priority says the opposite: .*0.0.*-1.0"),
    (Equal, r"it gives the requests '0' and '1' the same priority, \(1.0,\)"),
    (NotANumber, "its priority of request '0' is not a number"),
    (NotANumberLater, "its priority of request '2' is not a number"),
    (NanKeys, "is not a number: .*nan"),
    (Strangers, "its order gives request '9', which it was not given"),
    (NoRequests, "its order gives '0', which is not a request"),
    (Remembers, "its order gives request '[0-3]', which has ended"),
    (GivesNone, "its order gives none of the 4 unfinished requests"),
    (NoIterator, r"its order\(\) raised TypeError"),
    (NoTuple, r"its priority\(\) raised TypeError"),
]

LATER = (Remembers, Repeats, NotANumberLater)
"""These are correct until a request has ended, or in the part of the order that a small batch reads."""


def serve(engine: Engine, count: int = 4) -> None:
    for number in range(count):
        params = SamplingParams(max_tokens=3 + number, temperature=0.0, ignore_eos=True)
        engine.add(str(number), [1] * 9, params)
    while engine.has_work:
        engine.step()
    engine.stats()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize(("policy", "reason"), REASONS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_violation_is_reported_with_the_policys_name(
    policy: type[Policy], reason: str, batch: int, overlap: bool, symbolic_engine: Build
) -> None:
    engine = symbolic_engine(policy, max_batch_size=batch, overlap=overlap)
    with pytest.raises(PolicyError, match=reason) as error:
        serve(engine)
    assert f"the policy '{__name__}:{policy.__name__}' cannot be used" in str(error.value)
    if policy is not Remembers and (policy not in LATER or batch == 8):
        assert engine.runner.plans == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["add", "remove", "order", "priority", "on_start", "on_step", "levels"])
def test_an_exception_in_any_method_is_reported_with_the_methods_name(
    method: str, symbolic_engine: Build
) -> None:
    def fails(*args: object) -> None:
        raise ZeroDivisionError("division by zero")

    policy = type("Fails", (Good,), {method: fails})
    engine = symbolic_engine(policy, max_batch_size=1)
    with pytest.raises(PolicyError, match=rf"Fails.*its {method}\(\) raised ZeroDivisionError: division by"):
        serve(engine)


@pytest.mark.parametrize(("method", "argument"), [("expected_wait", None), ("steady_seconds", ())])
def test_expected_waits_that_are_nan_or_raise_are_reported(method: str, argument: object) -> None:
    policy = type("Fails", (Good,), {method: lambda *args: math.nan})(PolicyContext())
    request = Request.new("1", [1], SamplingParams(), 0.0)
    with pytest.raises(PolicyError, match=f"Fails.*its {method}.*is not a number"):
        getattr(Guarded(policy), method)(argument or request, 0.0)
    policy = type("Fails", (Good,), {method: lambda *args: 1 / 0})(PolicyContext())
    with pytest.raises(PolicyError, match=rf"Fails.*its {method}\(\) raised ZeroDivisionError"):
        getattr(Guarded(policy), method)(argument or request, 0.0)


def test_a_policy_that_cannot_be_created_is_reported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Abstract(Policy):
        pass

    class Forgetful(Good):
        def __init__(self, context: PolicyContext) -> None:
            """Do not call super().__init__."""

    monkeypatch.setitem(globals(), "Abstract", Abstract)
    monkeypatch.setitem(globals(), "Forgetful", Forgetful)
    for name in ("Abstract", "Forgetful"):
        with pytest.raises(PolicyError, match=rf"{name}' cannot be used: its __init__\(\) raised"):
            make_policy(f"{__name__}:{name}", PolicyContext())


def test_a_contradiction_in_a_later_step_is_found_before_a_request_is_evicted(symbolic_engine: Build) -> None:
    """The order does not change, so the guard checks priorities only when the scheduler asks for one."""

    class Reverses(Good):
        sign = 1.0

        def priority(self, request: Request) -> Priority:
            return (self.sign * float(request.id),)

    engine = symbolic_engine(Reverses, device_blocks=12, max_batch_size=3, offloading="reactive")
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, Reverses)
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    for number in range(3):
        engine.add(str(number), [1] * 9, params)
    engine.step()
    policy.sign = -1.0
    with pytest.raises(PolicyError, match="its order gives request '0' before '1', but its priority"):
        serve(engine, 0)
    assert engine.scheduler.counters.offloaded_blocks == 0


def test_a_correct_policy_passes_all_checks(symbolic_engine: Build) -> None:
    engine = symbolic_engine(Good, device_blocks=6, max_batch_size=2)
    serve(engine, 12)
    assert engine.stats()["finished"] == 12
    assert engine.stats()["levels"] == []


def test_the_guard_reads_at_most_one_batch_ahead(symbolic_engine: Build) -> None:
    class Counts(Good):
        def order(self, now: float) -> Iterator[Request]:
            for request in self.requests.values():
                self.asked += 1
                yield request

    engine = symbolic_engine(Counts, max_batch_size=4)
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    for number in range(1000):
        engine.add(str(number), [1] * 4, params)
    engine.step()
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, Counts)
    assert policy.asked <= 2 * 5


@pytest.mark.parametrize("name", [name for name in policy_names() if "mlfq" in name])
def test_the_guard_returns_the_policys_levels(name: str, symbolic_engine: Build) -> None:
    levels = symbolic_engine(name).scheduler.policy.levels()
    assert all(isinstance(level, Level) for level in levels)
    assert levels
