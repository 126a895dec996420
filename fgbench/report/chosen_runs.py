"""Which runs are compared, read from disk, and the cost models that go with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgbench.results.run import Run
    from fgengine.cost import CostModel

MAX_FOLDERS = 500
"""Newest run folders looked at when none are find_run."""
Say = Callable[[str], None]


def named_runs(paths: Sequence[Path], say: Say) -> list[Run]:
    """The runs at ``paths``: run folders, and all runs of folders that hold some, but of a folder's runs none
    that was repeated later.

    Args:
        say: Gets a sentence for each run that is damaged or holds no finished request: it is left out.

    Raises:
        ValueError: a path is neither.
    """
    from fgbench.report.pairing import without_repeats
    from fgbench.results.run import read_run, readable, run_folders

    found: list[Run] = []
    for path in dict.fromkeys(paths):
        folders = run_folders(path)
        runs = readable(read_run, folders, lambda reason: say(f"Left out: {reason}"))
        found += runs if folders == [path] else without_repeats(runs)
    for run in found:
        if not run.records:
            say(f"Left out: {run.path} holds no finished request.")
    return list({run.path.resolve(): run for run in found if run.records}.values())


def newest_runs(results: Path, say: Say) -> list[Run]:
    """The newest comparable runs under ``results``; ``say`` gets a sentence for what is left out.

    Raises:
        ValueError: there are none.
    """
    from fgbench.report.pairing import WorkloadKey, newest_comparable
    from fgbench.results.run import find_runs, has_requests, read_info, read_run, readable

    paths = [path for path in find_runs(results)[-MAX_FOLDERS:] if has_requests(path)]

    def read_with_path(path: Path) -> tuple[Path, dict[str, Any]]:
        return path, read_info(path)

    def left_out(reason: str) -> None:
        say(f"Left out: {reason}")

    infos = readable(read_with_path, paths, left_out)
    workloads = [WorkloadKey.of(info) for _, info in infos]
    same = [path for (path, _), work in zip(infos, workloads, strict=True) if work == workloads[-1]]
    found = newest_comparable(readable(read_run, same, left_out))
    if not found:
        raise ValueError(f"{results} holds no run with finished requests; 'fgbench run' makes one")
    if others := len(infos) - len(same):
        say(f"Left out: {others} older runs on other workloads; name folders to choose.")
    return found


def cost_models(profile: Path | None, say: Say) -> Callable[[str], CostModel | None]:
    """The cost model of a model by its name: from ``profile``, else from the newest profile of the model in
    the cache; None where there is none, of which ``say`` gets a sentence.

    Raises:
        ValueError: ``profile`` is no usable profile.
    """
    from fgengine.profile import Profile
    from fgengine.profile_cache import newest_profile

    given = Profile.load(profile) if profile else None

    @cache
    def cost_of(model: str) -> CostModel | None:
        if given is not None:
            if PurePath(given.model).name != model:
                say(f"No slowdowns of {model}: {profile} is the profile of {given.model}.")
                return None
            return given.cost
        newest = newest_profile(model)
        if newest is None:
            say(f"No slowdowns: there is no profile of {model}: 'fgbench profile' makes one.")
            return None
        say(f"Slowdowns are relative to {model} alone on {newest.device} in {newest.dtype}, by its profile.")
        return newest.cost

    return cost_of
