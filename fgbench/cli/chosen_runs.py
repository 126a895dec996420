"""Which runs ``fgbench compare`` is about, read from disk, and the cost models that go with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from fgbench.results.run import Run
    from fgengine.cost import CostModel

T = TypeVar("T")
MOST_FOLDERS = 500
"""Newest run folders looked at when none are named."""
Say = Callable[[str], None]


def named_runs(paths: Sequence[Path], say: Say) -> list[Run]:
    """The runs at ``paths``: run folders, and all runs of folders that hold some. Of a folder's runs, damaged
    ones are told to ``say`` and those repeated later are left out.

    Raises:
        ValueError: a path is neither, or a run folder that was named itself is damaged.
    """
    from fgbench.report.pairing import without_repeats
    from fgbench.results.run import RUN_FILE, find_runs, read_run

    runs: list[Run] = []
    for path in dict.fromkeys(paths):
        if (path / RUN_FILE).exists():
            runs.append(read_run(path))
        elif found := find_runs(path):
            runs += without_repeats(_readable(read_run, found, say))
        else:
            raise ValueError(f"{path} is neither a run folder nor a folder of runs: it holds no {RUN_FILE}")
    return list({run.path.resolve(): run for run in runs}.values())


def newest_runs(results: Path, say: Say) -> list[Run]:
    """The newest comparable runs under ``results``; what is left out is told to ``say``.

    Raises:
        ValueError: there are none.
    """
    from fgbench.report.pairing import Workload, newest_comparable
    from fgbench.results.run import find_runs, has_requests, read_info, read_run

    paths = [path for path in find_runs(results)[-MOST_FOLDERS:] if has_requests(path)]

    def read_with_path(path: Path) -> tuple[Path, dict[str, Any]]:
        return path, read_info(path)

    infos = _readable(read_with_path, paths, say)
    workloads = [Workload.of(info) for _, info in infos]
    same = [path for (path, _), work in zip(infos, workloads, strict=True) if work == workloads[-1]]
    found = newest_comparable(_readable(read_run, same, say))
    if not found:
        raise ValueError(f"{results} holds no run with finished requests; 'fgbench run' makes one")
    if others := len(infos) - len(same):
        say(f"Left out: {others} older runs on other workloads; name folders to choose.")
    return found


def cost_models(profile: Path | None, say: Say) -> Callable[[str], CostModel | None]:
    """The cost model of a model by its name: from ``profile``, else from the newest profile of the model in
    the cache; None where there is none, which is told to ``say``.

    Raises:
        ValueError: ``profile`` is no usable profile.
    """
    from fgengine.profile import Profile
    from fgengine.profile_cache import profiles_of

    given = Profile.load(profile) if profile else None

    @cache
    def cost_of(model: str) -> CostModel | None:
        if given is not None:
            if PurePath(given.model).name != model:
                say(f"No slowdowns of {model}: {profile} is the profile of {given.model}.")
                return None
            return given.cost
        cached = [Profile.load(path) for path in profiles_of(model)]
        if not cached:
            say(f"No slowdowns: there is no profile of {model}: 'fgbench profile' makes one.")
            return None
        newest = max(cached, key=lambda each: each.measured)
        say(f"Slowdowns are relative to {model} alone on {newest.device} in {newest.dtype}, by its profile.")
        return newest.cost

    return cost_of


def _readable(read: Callable[[Path], T], paths: Sequence[Path], say: Say) -> list[T]:
    """Those that are not damaged."""
    from fgbench.results.run import told

    values = (told(read, path, lambda reason: say(f"Left out: {reason}")) for path in paths)
    return [value for value in values if value is not None]
