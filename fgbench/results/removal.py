"""Taking run folders away, and nothing else."""

from __future__ import annotations

from pathlib import Path

from fgbench.results.run import RUN_FILE, is_being_written, read_info


def check_removable(folder: Path) -> None:
    """Raises ValueError for what is not plainly a run folder, or is one that is being written."""
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, not a run folder: nothing is removed")
    read_info(folder)
    if strange := [entry.name for entry in folder.iterdir() if entry.is_symlink() or not entry.is_file()]:
        raise ValueError(f"{folder} holds {strange[0]}, which no run wrote: remove it by hand")
    if is_being_written(folder):
        raise ValueError(f"the run in {folder} is under way: stop it first")


def remove(folder: Path) -> None:
    """run.json goes last, so that a removal cut off can be done again. Raises ValueError as
    ``check_removable``."""
    check_removable(folder)
    for entry in list(folder.iterdir()):
        if entry.name != RUN_FILE:
            entry.unlink()
    (folder / RUN_FILE).unlink()
    folder.rmdir()
