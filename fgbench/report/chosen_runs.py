"""Reads the runs to compare from disk, and the cost models of their models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    from fgbench.results.run import read_run, readable, run_folders

    found: list[Run] = []
    for path in dict.fromkeys(paths):
        folders = run_folders(path)
        runs = readable(read_run, folders, lambda reason: warn(f"Left out: {reason}"))
        found += runs if folders == [path] else _without_repeats(runs, warn)
    for run in found:
        if not run.records:
            warn(f"Left out: {run.path} holds no finished request.")
    return list({run.path.resolve(): run for run in found if run.records}.values())


def _without_repeats(runs: Sequence[Run], warn: Warn) -> list[Run]:
    """Return the runs without repeats, and say how many complete ones there were.

    A killed run is no repeat if it was measured again: a resumed sweep has such runs.
    """
    from fgbench.report.pairing import without_repeats

    found = without_repeats(runs)
    kept = set(map(id, found))
    if repeats := sum(run.complete and bool(run.records) and id(run) not in kept for run in runs):
        what = "1 older repeat" if repeats == 1 else f"{repeats} older repeats"
        warn(
            f"Left out: {what} of the same backend, settings and load. If another server ran at the same "
            "URL, give each a name (--name)."
        )
    return found


def newest_runs(results: Path, warn: Warn) -> list[Run]:
    """Return the newest runs under ``results`` that can be compared with each other.

    Args:
        warn: Called with a sentence for the runs that are left out.

    Raises:
        ValueError: there are none.
    """
    from fgbench.report.pairing import WorkloadKey, newest_comparable
    from fgbench.results.run import find_runs, has_requests, read_info, read_run, readable

    folders = find_runs(results)
    if (older := len(folders) - MAX_FOLDERS) > 0:
        warn(f"Left out: the oldest {older:,} runs in {results}. To compare those, name their folders.")
    paths = [path for path in folders[-MAX_FOLDERS:] if has_requests(path)]

    def read_with_path(path: Path) -> tuple[Path, dict[str, Any]]:
        return path, read_info(path)

    def left_out(reason: str) -> None:
        warn(f"Left out: {reason}")

    infos = readable(read_with_path, paths, left_out)
    workloads = [WorkloadKey.of(info) for _, info in infos]
    same = [path for (path, _), key in zip(infos, workloads, strict=True) if key == workloads[-1]]
    found = _without_repeats(newest_comparable(readable(read_run, same, left_out)), warn)
    if not found:
        raise ValueError(f"{results} holds no run with finished requests: make one with 'fgbench run'")
    if others := len(infos) - len(same):
        runs = "1 older run" if others == 1 else f"{others} older runs"
        warn(f"Left out: {runs} on other workloads. To compare those, name their folders.")
    return found


def cost_models(profile: Path | None, runs: Sequence[Run], warn: Warn) -> Callable[[str], CostModel | None]:
    """Return a function that gives the cost model for a model's name, or None if there is none.

    Args:
        profile: The profile to use. None: the newest cached profile of the model on the machine of the runs.
        runs: The runs that are compared.
        warn: Called with a sentence about the profile used, or the missing one.

    Raises:
        ValueError: ``profile`` cannot be used.
    """
    from fgengine.profile import Profile, profiles_in
    from fgengine.profile_cache import profiles_folder

    given = Profile.load(profile) if profile else None

    @cache
    def cost_of(model: str) -> CostModel | None:
        if given is not None:
            if PurePath(given.model).name != model:
                warn(f"No slowdowns of {model}: {profile} is the profile of {given.model}.")
                return None
            return given.cost
        infos = [run.info for run in runs if PurePath(str(run.info.get("model"))).name == model]
        known = profiles_in(profiles_folder(), model)
        fitting = [one for one in known if all(_is_of(one.device, info) for info in infos)]
        newest = max(fitting, key=lambda one: one.measured, default=None)
        if newest is None:
            where = (
                ""
                if not known
                else f" on {' and '.join(sorted({machine_of(info) for info in infos} - {''}))}"
            )
            warn(
                f"No slowdowns: there is no profile of {model}{where}. Make one with 'fgbench profile', or "
                "give one with --profile."
            )
            return None
        warn(
            f"Slowdowns are relative to a request alone on {newest.device} in {newest.dtype}, estimated by "
            f"the profile of {model}."
        )
        return newest.cost

    return cost_of


def machine_of(info: Mapping[str, Any]) -> str:
    """Return the processor that a run was made on; for a simulation, the device of its profile."""
    profile = _settings(info).get("profile")
    if isinstance(profile, str):  # it begins with the device
        return profile
    return str((info.get("environment") or {}).get("cpu") or "")


def _settings(info: Mapping[str, Any]) -> Mapping[str, Any]:
    return (info.get("backend") or {}).get("settings") or {}


def _is_of(device: str, info: Mapping[str, Any]) -> bool:
    """Whether a profile of ``device`` may describe the machine of a run.

    A run does not name its GPU. So any GPU's profile fits, unless the run can have used none.
    """
    settings, machine = _settings(info), machine_of(info)
    if isinstance(settings.get("profile"), str):
        return machine.startswith(device)
    processor, threads, _ = device.partition(" threads of ")
    if threads:
        return settings.get("device") != "cuda" and (not machine or processor.rpartition(",")[0] == machine)
    torch = str(((info.get("environment") or {}).get("packages") or {}).get("torch"))
    return settings.get("device") != "cpu" and not torch.endswith("+cpu")
