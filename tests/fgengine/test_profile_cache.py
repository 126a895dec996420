"""Which profile an engine uses, and when a cached profile is not used."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgengine import profile_cache, profile_grid, profiler
from fgengine.cache import is_whole, keep, locked
from fgengine.config import EngineConfig
from fgengine.physics import Ceilings
from fgengine.plan import StepPlan, StepResult
from fgengine.profile import Profile
from fgengine.profile_cache import default_path, ensure, newest_profile, times_predicted

SetLoad = Callable[[float], None]


@pytest.fixture
def cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slow_machine: list[Ceilings], other_load: SetLoad
) -> Path:
    """Provide an empty cache folder, on a fake quiet machine."""
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def runner(known_runner: Any) -> Any:
    return known_runner(num_device_blocks=1000)


@pytest.fixture
def lines() -> list[str]:
    return []


def profiles_in(cache: Path) -> list[Path]:
    return sorted((cache / "profiles").glob("*.json"))


def has_measured_a_profile(runner: Any) -> bool:
    """Whether the runner computed more than the few steps that check a cached profile."""
    return len(runner.plans) > len(profile_cache.CHECKED.points()) * 5


def test_without_a_profile_a_quick_one_is_measured_reported_and_cached(
    cache: Path, runner: Any, lines: list[str]
) -> None:
    first = ensure(EngineConfig(), runner, lines.append)
    (cached,) = profiles_in(cache)
    assert Profile.load(cached) == first
    assert is_whole(cached)
    assert any("measuring a quick one" in line for line in lines)
    assert newest_profile("smollm2-135m") == first
    assert newest_profile("smollm2") is None
    assert first.conditions is not None
    assert not first.conditions.busy
    runner.plans.clear()
    assert ensure(EngineConfig(), runner, lines.append) == first
    assert runner.plans, "the cached profile was compared with a few steps"
    assert not has_measured_a_profile(runner)


def test_the_configured_profile_is_loaded_and_checked(
    cache: Path, tmp_path: Path, runner: Any, lines: list[str]
) -> None:
    path = tmp_path / "mine.json"
    profile = profiler.make_profile("smollm2-135m", runner, profile_grid.QUICK)
    profile.save(path)
    config = EngineConfig(profile=path)
    assert ensure(config, runner, lines.append) == profile
    assert not lines
    runner.speedup = 0.5
    assert ensure(config, runner, lines.append) == profile
    (line,) = lines
    assert "mine.json: steps take 2.00 times as long as predicted, on a quiet machine" in line
    runner.device_name = "another"
    with pytest.raises(ValueError, match=r"device abacus.*, not another"):
        ensure(config, runner, lines.append)


@pytest.mark.parametrize("damage", ["truncated", "changed", "no hash", "no profile", "removed"])
def test_a_damaged_profile_is_measured_again(cache: Path, runner: Any, lines: list[str], damage: str) -> None:
    ensure(EngineConfig(), runner, lines.append)
    (path,) = profiles_in(cache)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:500])
    elif damage == "changed":
        path.write_bytes(content.replace(b'"step": 0', b'"step": 1'))
    elif damage == "no hash":
        path.with_name(path.name + ".sha256").unlink()
    elif damage == "no profile":
        keep(path, b"{}")
    else:
        path.unlink()
    lines.clear()
    runner.plans.clear()
    ensure(EngineConfig(), runner, lines.append)
    assert has_measured_a_profile(runner)
    assert damage == "removed" or any("the cached profile is not used" in line for line in lines)
    assert is_whole(path)


def test_a_profile_without_long_requests_is_not_cached(cache: Path, runner: Any) -> None:
    runner.max_model_len = 128
    ensure(EngineConfig(), runner, lambda line: None)
    assert not profiles_in(cache)


def test_an_inaccurate_profile_is_used_but_not_cached(cache: Path, runner: Any, lines: list[str]) -> None:
    execute, noise = runner.execute, np.random.default_rng(0)

    def disturbed(plan: StepPlan) -> StepResult:
        return replace(execute(plan), seconds=execute(plan).seconds * 20.0 ** noise.uniform())

    runner.execute = disturbed
    profile = ensure(EngineConfig(), runner, lines.append)
    assert profile.median_error > profile_cache.WORTH_KEEPING
    assert any("inaccurate (median error" in line for line in lines)
    assert not profiles_in(cache)


def test_a_profile_measured_on_a_busy_machine_is_used_but_not_cached(
    cache: Path, runner: Any, lines: list[str], other_load: SetLoad
) -> None:
    """All steps are equally slow then, so the error of the fit does not show it."""
    other_load(0.9)
    runner.speedup = 0.1
    profile = ensure(EngineConfig(), runner, lines.append)
    assert profile.median_error < profile_cache.WORTH_KEEPING
    assert profile.conditions is not None
    assert profile.conditions.other_cores == 0.9
    assert any("while other programs took 0.90 cores" in line for line in lines)
    assert not profiles_in(cache)


@pytest.mark.parametrize(("speedup", "times"), [(0.5, "2.00"), (1.6, "0.6")])
def test_a_cached_profile_that_does_not_match_is_measured_again(
    cache: Path, runner: Any, lines: list[str], speedup: float, times: str
) -> None:
    first = ensure(EngineConfig(), runner, lines.append)
    lines.clear()
    runner.speedup = speedup
    second = ensure(EngineConfig(), runner, lines.append)
    assert any(f"steps take {times}" in line and "on a quiet machine" in line for line in lines)
    assert second.cost.step == pytest.approx(first.cost.step / speedup)
    assert Profile.load(profiles_in(cache)[0]) == second


def test_on_a_busy_machine_a_mismatch_is_reported_and_the_cached_profile_is_used(
    cache: Path, runner: Any, lines: list[str], other_load: SetLoad
) -> None:
    first = ensure(EngineConfig(), runner, lines.append)
    lines.clear()
    runner.speedup = 0.4
    other_load(1.2)
    assert ensure(EngineConfig(), runner, lines.append) == first
    (line,) = lines
    assert line.startswith("steps take 2.50 times as long as predicted, while other programs took 1.20 cores")
    assert Profile.load(profiles_in(cache)[0]) == first


def test_a_thorough_profile_is_never_replaced_by_a_quick_one(
    cache: Path, runner: Any, lines: list[str]
) -> None:
    thorough = profiler.make_profile("smollm2-135m", runner, profile_grid.FULL)
    path = default_path("smollm2-135m", runner)
    keep(path, thorough.to_json())
    runner.speedup = 0.5
    assert ensure(EngineConfig(), runner, lines.append) == thorough
    assert any("measure a new one with `fgbench profile`" in line for line in lines)
    assert Profile.load(path) == thorough


def test_a_cached_profile_of_a_busy_machine_is_measured_again(
    cache: Path, runner: Any, lines: list[str], other_load: SetLoad
) -> None:
    other_load(0.9)
    busy = profiler.make_profile("smollm2-135m", runner, profile_grid.QUICK)
    keep(default_path("smollm2-135m", runner), busy.to_json())
    other_load(0.0)
    profile = ensure(EngineConfig(), runner, lines.append)
    assert profile.conditions is not None
    assert not profile.conditions.busy


def test_small_differences_are_no_mismatch(cache: Path, runner: Any) -> None:
    profile = ensure(EngineConfig(), runner, lambda line: None)
    runner.speedup = 1 / 1.2
    assert times_predicted(profile, runner) == pytest.approx(1.2)
    assert profile_cache.mismatch_of(profile, runner) is None
    runner.max_model_len = 10
    assert times_predicted(profile, runner) is None


def test_a_cache_that_cannot_be_written_only_gives_a_warning(
    cache: Path, runner: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the test puts a file in place of the folder."""
    cache.write_text("in the way")
    profile = ensure(EngineConfig(), runner, lines.append)
    assert profile.median_error < 0.05
    assert any("cannot be cached" in line and "each start measures one" in line for line in lines)


def hold(path: Path, held: Any, release: Any) -> None:
    with locked(path):
        held.set()
        release.wait(20.0)


def test_a_second_profiler_waits_for_the_first(cache: Path, runner: Any, lines: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(cache / "profiles/.lock", held, release))
    other.start()
    try:
        assert held.wait(60.0)

        def report(line: str) -> None:
            lines.append(line)
            release.set()

        began = time.monotonic()
        ensure(EngineConfig(), runner, report)
        assert lines[0].startswith("another profile is being measured")
        assert time.monotonic() - began < 20.0
    finally:
        release.set()
        other.join()
    lines.clear()
    ensure(EngineConfig(), runner, lines.append)
    assert not any("another profile" in line for line in lines)


def test_the_newest_profile_is_the_readable_one_that_was_measured_last(
    cache: Path, runner: Any, lines: list[str]
) -> None:
    first = ensure(EngineConfig(), runner, lines.append)
    folder = cache / "profiles"
    later = replace(first, device="another machine", measured="2099-01-01T00:00:00+00:00")
    later.save(folder / "smollm2-135m-another-machine-bfloat16.json")
    (folder / "smollm2-135m-damaged.json").write_text("{")
    os.utime(folder / "smollm2-135m-another-machine-bfloat16.json", (0, 0))  # copied, with an old date
    assert newest_profile("smollm2-135m") == later
