"""Picks the profile of an engine: a cached profile that is still correct, or a quick new one.

A cached profile affects all later starts, runs and simulations. So a profile is cached only if the machine
was otherwise idle during the measurement. Each time it is used, it is compared with a few measured steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fgengine.cache import cache_folder, is_whole, keep, locked
from fgengine.config import EngineConfig
from fgengine.machine_load import MachineLoad, load_between, sample
from fgengine.profile import Profile, file_name, profiles_in
from fgengine.profile_grid import Grid, grid_for
from fgengine.profiler import ProfiledRunner, describe_device, make_profile, measure

WORTH_KEEPING = 0.25
"""Maximum median held-out error of a quick profile that is cached."""
MAX_OFF = 0.25
"""Maximum relative difference between measured steps and the predictions of a cached profile."""
CHECKED = Grid(
    prefill=(64,), chunk_starts=(), decode=(1, 16), context=(128,), mixed=(), repeats=3, seconds_per_point=0.1
)
"""The steps that a cached profile is compared with. They take about half a second on a CPU."""
Report = Callable[[str], None]


def ensure(config: EngineConfig, runner: ProfiledRunner, report: Report) -> Profile:
    """Return the configured profile, else the cached one, else a quick new one. Reports its problems.

    Raises:
        ValueError: the configured profile is of another model, device or dtype, or it is physically
            impossible; or no profile can be measured.
    """
    if config.profile is not None:
        profile = _usable(config.profile, runner)
        if (mismatch := mismatch_of(profile, runner)) is not None:
            report(f"{config.profile}: {mismatch.describe()}; measure a new one with `fgbench profile`")
        return profile
    path = default_path(config.model, runner)
    with one_at_a_time(report):
        cached = _cached(path, runner, report)
        return cached if cached is not None else _measure_and_cache(config.model, path, runner, report)


def keep_profile(profile: Profile, path: Path, report: Report) -> bool:
    """Write a profile to the cache; return whether this worked.

    A failure is only reported, because the profile can still be used.
    """
    try:
        keep(path, profile.to_json())
    except OSError as error:
        reason = f"{path.parent}: {error.strerror}"
        report(f"the profile cannot be cached ({reason}), so each start measures one")
        return False
    return True


@contextmanager
def one_at_a_time(report: Report) -> Iterator[None]:
    """Hold the lock of the profiler. Two profilers would disturb each other, so the second one waits."""
    waiting = "another profile is being measured on this machine: waiting for it"
    with ExitStack() as held:
        with suppress(OSError):  # a read-only cache cannot have a lock; measure without it
            held.enter_context(locked(profiles_folder() / ".lock", lambda: report(waiting)))
        yield


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference between measured steps and a profile's predictions."""

    times: float
    """Measured seconds divided by predicted seconds."""
    load: MachineLoad
    """Load of the machine during the measurement."""

    def describe(self) -> str:
        """Return a clause, such as ``steps take 2.00 times as long as predicted, on a quiet machine``."""
        circumstance = f"while {self.load.describe()}" if self.load.is_busy else "on a quiet machine"
        return f"steps take {self.times:.2f} times as long as predicted, {circumstance}"


def mismatch_of(profile: Profile, runner: ProfiledRunner) -> Mismatch | None:
    """Time a few steps and compare them with the profile. Returns None if the difference is acceptable."""
    before = sample()
    times = times_predicted(profile, runner)
    if times is None or 1.0 - MAX_OFF <= times <= 1.0 + MAX_OFF:
        return None
    return Mismatch(times, load_between(before, sample()))


def times_predicted(profile: Profile, runner: ProfiledRunner) -> float | None:
    """Return the median ratio of measured to predicted seconds of a few steps; None if none can be timed."""
    try:
        points = measure(runner, CHECKED)
    except ValueError:
        return None
    return median(point.seconds / profile.cost.step_seconds(point.shape) for point in points)


def newest_profile(model: str) -> Profile | None:
    """Return the cached profile of a model that was measured last, on any device; None if there is none."""
    profiles = profiles_in(profiles_folder(), model)
    return max(profiles, key=lambda profile: profile.measured, default=None)


def profiles_folder() -> Path:
    """Return the folder of cached profiles."""
    return cache_folder() / "profiles"


def default_path(model: str, runner: ProfiledRunner) -> Path:
    """Return the path of the cached profile for a model on the runner's device and dtype."""
    return profiles_folder() / file_name(model, describe_device(runner), runner.dtype_name)


def _usable(path: Path, runner: ProfiledRunner) -> Profile:
    profile = Profile.load(path)
    profile.require(shape=runner.shape, device=describe_device(runner), dtype=runner.dtype_name)
    return profile


def _cached(path: Path, runner: ProfiledRunner, report: Report) -> Profile | None:
    """Return the cached profile, or None if there is none that can be trusted."""
    if not path.exists():
        report("no profile of this model on this device yet: measuring a quick one takes some seconds")
        return None
    try:
        if not is_whole(path):
            raise ValueError("its file was truncated, damaged or changed by hand")
        profile = _usable(path, runner)
    except ValueError as error:
        report(f"the cached profile is not used: {error}")
        return None
    if profile.conditions is not None and profile.conditions.busy:
        report("the cached profile was measured on a busy machine: measuring a new one takes some seconds")
        return None
    mismatch = mismatch_of(profile, runner)
    if mismatch is None:
        return profile
    is_quick = len(profile.points) <= len(grid_for(runner.device.type, quick=True).points())
    if is_quick and not mismatch.load.is_busy:
        report(f"{mismatch.describe()}: measuring a new profile takes some seconds")
        return None
    report(f"{mismatch.describe()}; the profile is still used: measure a new one with `fgbench profile`")
    return profile


def _measure_and_cache(model: str, path: Path, runner: ProfiledRunner, report: Report) -> Profile:
    grid = grid_for(runner.device.type, quick=True)
    profile = make_profile(model, runner, grid)
    accuracy = f"median error {profile.median_error:.0%} on points held out of the fit"
    conditions = profile.conditions
    if conditions is not None and conditions.busy:
        report(
            f"the profile was measured while other programs took {conditions.other_cores:.2f} cores: "
            "this engine uses it, and the next one measures again"
        )
    elif profile.median_error > WORTH_KEEPING:
        report(
            f"the profile is inaccurate ({accuracy}): this engine uses it, and the next one measures again"
        )
    elif profile.covers(grid, runner.shape) and keep_profile(profile, path, report):
        report(f"profile cached in {path} ({accuracy}); `fgbench profile` measures a thorough one")
    return profile
