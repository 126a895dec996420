"""Reads the runs to compare from disk, and the cost models of their models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgbench.results.run import Run
    from fgengine.cost import CostModel

MAX_FOLDERS = 500
"""Number of the newest run folders that are read if none are named."""
Warn = Callable[[str], None]


def named_runs(paths: Sequence[Path], warn: Warn) -> list[Run]:
    """Return the runs at ``paths``: run folders, or folders of runs.

    If a folder holds several runs of the same settings, only the newest counts.

    Args:
        warn: Called with a sentence for each run that is left out: it is damaged, or no request finished.

    Raises:
        ValueError: a path is neither a run folder nor a folder of runs.
    """
    from fgbench.report.pairing import without_repeats
    from fgbench.results.run import read_run, readable, run_folders

    found: list[Run] = []
    for path in dict.fromkeys(paths):
        folders = run_folders(path)
        runs = readable(read_run, folders, lambda reason: warn(f"Left out: {reason}"))
        found += runs if folders == [path] else without_repeats(runs)
    for run in found:
        if not run.records:
            warn(f"Left out: {run.path} holds no finished request.")
    return list({run.path.resolve(): run for run in found if run.records}.values())


def newest_runs(results: Path, warn: Warn) -> list[Run]:
    """Return the newest runs under ``results`` that can be compared with each other.

    Args:
        warn: Called with a sentence for the runs that are left out.

    Raises:
        ValueError: there are none.
    """
    from fgbench.report.pairing import WorkloadKey, newest_comparable
    from fgbench.results.run import find_runs, has_requests, read_info, read_run, readable

    paths = [path for path in find_runs(results)[-MAX_FOLDERS:] if has_requests(path)]

    def read_with_path(path: Path) -> tuple[Path, dict[str, Any]]:
        return path, read_info(path)

    def left_out(reason: str) -> None:
        warn(f"Left out: {reason}")

    infos = readable(read_with_path, paths, left_out)
    workloads = [WorkloadKey.of(info) for _, info in infos]
    same = [path for (path, _), key in zip(infos, workloads, strict=True) if key == workloads[-1]]
    found = newest_comparable(readable(read_run, same, left_out))
    if not found:
        raise ValueError(f"{results} holds no run with finished requests: make one with 'fgbench run'")
    if others := len(infos) - len(same):
        runs = "1 older run" if others == 1 else f"{others} older runs"
        warn(f"Left out: {runs} on other workloads. To compare those, name their folders.")
    return found


def cost_models(profile: Path | None, warn: Warn) -> Callable[[str], CostModel | None]:
    """Return a function that gives the cost model for a model's name, or None if there is none.

    Args:
        profile: The profile to use. None: the newest cached profile of the model.
        warn: Called with a sentence about the profile used, or the missing one.

    Raises:
        ValueError: ``profile`` cannot be used.
    """
    from fgengine.profile import Profile
    from fgengine.profile_cache import newest_profile

    given = Profile.load(profile) if profile else None

    @cache
    def cost_of(model: str) -> CostModel | None:
        if given is not None:
            if PurePath(given.model).name != model:
                warn(f"No slowdowns of {model}: {profile} is the profile of {given.model}.")
                return None
            return given.cost
        newest = newest_profile(model)
        if newest is None:
            warn(f"No slowdowns: there is no profile of {model}. Make one with 'fgbench profile'.")
            return None
        warn(
            f"Slowdowns are relative to a request alone on {newest.device} in {newest.dtype}, estimated by "
            f"the profile of {model}."
        )
        return newest.cost

    return cost_of
