"""Which profile an engine runs by: a kept one that still holds, or a quick new one.

A profile steers every later start, run and simulation, so one is kept only if it was measured while the
machine did nothing else, and a kept one is held against a few steps each time it is used.
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
from fgengine.profile_grid import QUICK, Grid
from fgengine.profiler import ProfiledRunner, describe_device, make_profile, measure

WORTH_KEEPING = 0.25
"""Median held-out error up to which a quick profile is kept for the next engines."""
MAX_OFF = 0.25
"""How far steps may be from what a kept profile says of them."""
CHECKED = Grid(
    prefill=(64,), behind=(), decode=(1, 16), context=(128,), mixed=(), repeats=3, seconds_per_point=0.1
)
"""The steps that a kept profile is held against: about half a second on a CPU."""
Report = Callable[[str], None]


def ensure(config: EngineConfig, runner: ProfiledRunner, report: Report) -> Profile:
    """The profile asked for, else the kept one, else a quick new one; what speaks against it is reported.

    Raises:
        ValueError: the profile asked for is of another model, device or dtype, or beats physics; or none
            can be measured.
    """
    if config.profile is not None:
        profile = _usable(config.profile, runner)
        if (mismatch := mismatch_of(profile, runner)) is not None:
            report(f"{config.profile}: {mismatch.describe()}; `fgbench profile` measures a new one")
        return profile
    path = default_path(config.model, runner)
    with one_at_a_time(report):
        kept = _kept(path, runner, report)
        return kept if kept is not None else _measure_and_keep(config.model, path, runner, report)


def keep_profile(profile: Profile, path: Path, report: Report) -> bool:
    """Whether it could be kept; why not is reported, since the profile itself can be used all the same."""
    try:
        keep(path, profile.to_json())
    except OSError as error:
        why = f"{path.parent}: {error.strerror}"
        report(f"the profile cannot be kept ({why}), so each start measures one")
        return False
    return True


@contextmanager
def one_at_a_time(report: Report) -> Iterator[None]:
    """Two profilers would measure each other, so the second waits until the first is done."""
    waiting = "another profile is being measured on this machine: waiting for it"
    with ExitStack() as held:
        with suppress(OSError):  # a cache that cannot be written has no lock; measure without it
            held.enter_context(locked(profiles_folder() / ".lock", lambda: report(waiting)))
        yield


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Steps are not as a profile says."""

    times: float
    """Their seconds over the predicted ones."""
    load: MachineLoad
    """While they were timed."""

    def describe(self) -> str:
        why = f"while {self.load.describe()}" if self.load.is_busy else "on a quiet machine"
        return f"steps take {self.times:.2f} times what the profile says, {why}"


def mismatch_of(profile: Profile, runner: ProfiledRunner) -> Mismatch | None:
    """Times a few steps; None where they are within ``MAX_OFF`` of the profile."""
    before = sample()
    times = times_predicted(profile, runner)
    if times is None or 1.0 - MAX_OFF <= times <= 1.0 + MAX_OFF:
        return None
    return Mismatch(times, load_between(before, sample()))


def times_predicted(profile: Profile, runner: ProfiledRunner) -> float | None:
    """How many times their predicted seconds a few steps take, the median; None where none can be timed."""
    try:
        points = measure(runner, CHECKED)
    except ValueError:
        return None
    return median(point.seconds / profile.cost.step_seconds(point.shape) for point in points)


def newest_profile(model: str) -> Profile | None:
    """The kept profile of a model that was measured last, on any device; None where there is none."""
    profiles = profiles_in(profiles_folder(), model)
    return max(profiles, key=lambda profile: profile.measured, default=None)


def profiles_folder() -> Path:
    return cache_folder() / "profiles"


def default_path(model: str, runner: ProfiledRunner) -> Path:
    return profiles_folder() / file_name(model, describe_device(runner), runner.dtype_name)


def _usable(path: Path, runner: ProfiledRunner) -> Profile:
    profile = Profile.load(path)
    profile.require(shape=runner.shape, device=describe_device(runner), dtype=runner.dtype_name)
    return profile


def _kept(path: Path, runner: ProfiledRunner, report: Report) -> Profile | None:
    """None where there is none to be trusted."""
    if not path.exists():
        report("no profile of this model on this device yet: measuring a quick one, some seconds")
        return None
    try:
        if not is_whole(path):
            raise ValueError("its file is not what was written: it was cut off, damaged, or changed by hand")
        profile = _usable(path, runner)
    except ValueError as error:
        report(f"the kept profile is not used: {error}")
        return None
    if profile.conditions is not None and profile.conditions.busy:
        report("the kept profile was measured on a busy machine: measuring a new one, some seconds")
        return None
    mismatch = mismatch_of(profile, runner)
    if mismatch is None:
        return profile
    is_quick = len(profile.points) <= len(QUICK.points())
    if is_quick and not mismatch.load.is_busy:
        report(f"{mismatch.describe()}: measuring a new one, some seconds")
        return None
    report(f"{mismatch.describe()}; it is used all the same, and `fgbench profile` measures a new one")
    return profile


def _measure_and_keep(model: str, path: Path, runner: ProfiledRunner, report: Report) -> Profile:
    profile = make_profile(model, runner, QUICK)
    trust = f"median error {profile.median_error:.0%} on points kept from the fit"
    conditions = profile.conditions
    if conditions is not None and conditions.busy:
        report(
            f"the profile was measured while other programs took {conditions.other_cores:.2f} cores: "
            "this engine uses it, and the next one measures again"
        )
    elif profile.median_error > WORTH_KEEPING:
        report(f"the profile is rough ({trust}): this engine uses it, and the next one measures again")
    elif profile.covers(QUICK, runner.shape) and keep_profile(profile, path, report):
        report(f"profile kept in {path} ({trust}); `fgbench profile` measures a thorough one")
    return profile
