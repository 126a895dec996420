"""Which sweep --resume goes on with, and whether it is still the one that was begun."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fgbench.spec.sweep import FREE, Settings
from fgbench.sweeping.folder import SweepFolder, find_sweeps, read_sweep


def to_resume(folder: Path | None, wanted: Settings, given: Collection[str]) -> SweepFolder:
    """The folder named, else the newest sweep of the options ``given``, or of any where none were.

    Raises:
        ValueError: there is none; says what its newest has else.
    """
    if folder is not None:
        return SweepFolder.open(folder)
    root = wanted.load.results
    sweeps = find_sweeps(root)
    if not sweeps:
        raise ValueError(f"{root} holds no sweep to go on with")
    if not set(given) - set(FREE):
        return SweepFolder.open(sweeps[-1])
    plan = wanted.checked().plan
    alike = [path for path in sweeps if read_sweep(path).get("plan") == plan]
    if not alike:
        resumed_settings(SweepFolder.open(sweeps[-1]), wanted, given)  # says what differs
        raise ValueError(
            f"none of the {len(sweeps)} sweeps in {root} has just these options; to go on with the newest "
            f"say --resume {sweeps[-1]}"
        )
    return SweepFolder.open(alike[-1])


def resumed_settings(kept: SweepFolder, wanted: Settings, given: Collection[str]) -> Settings:
    """The sweep's own settings, but for ``given`` ones that decide no figure.

    Raises:
        ValueError: another of the options given differs from its own.
    """
    own = Settings.from_json(kept.info["settings"])
    if own.plan != kept.info.get("plan"):
        raise ValueError(
            f"another version of fgbench began the sweep in {kept.path}: its settings are something else here"
        )
    try:
        return own.with_given(wanted, given)
    except ValueError as error:
        raise ValueError(f"{kept.path}: {error}") from None


def unfinished_sweep(settings: Settings) -> Path | None:
    """The newest of the same options that did not end well."""
    for path in reversed(find_sweeps(settings.load.results)):
        try:
            info = read_sweep(path)
        except ValueError:
            continue
        if info.get("plan") == settings.plan and info.get("status") != "complete":
            return path
    return None
