"""A run folder as a value, and reading one back, whole or killed midway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fgbench.metrics.record import RequestRecord

T = TypeVar("T")
VERSION = 1
RUN_FILE = "run.json"
REQUESTS_FILE = "requests.jsonl"
SPEC_FILE = "spec.toml"
"""Options with which ``fgbench run --config`` repeats the run."""
LOCK_FILE = ".lock"
"""Held by the process that writes the run."""
TABLE_FILE = "requests.parquet"
LOG_FILE = "server.log"
SWEEP_FILE = "sweep.json"
"""Marks a folder that holds the run folders of a sweep."""


@dataclass(frozen=True, slots=True)
class Run:
    path: Path
    info: dict[str, Any]
    """run.json; results/README.md describes it."""
    records: tuple[RequestRecord, ...]
    """In the order in which requests ended."""

    @property
    def status(self) -> str:
        """``complete``, ``interrupted``, ``failed``, or ``incomplete``: it never got to say how it ended,
        because it was killed or is still running."""
        status = str(self.info.get("status", "running"))
        return "incomplete" if status == "running" else status

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the result; empty where run.json does not hold it."""
        return str(self.info.get("fingerprint", ""))


def read_run(path: str | Path) -> Run:
    """Reads a run folder whatever state it was left in: a request cut off in the writing is dropped.

    Raises:
        ValueError: ``path`` is no run folder, its run.json is damaged, or a later version wrote it.
    """
    folder = Path(path)
    return Run(folder, read_info(folder), tuple(_records(folder / REQUESTS_FILE)))


def has_requests(folder: Path) -> bool:
    """Whether a request had ended and is whole on disk, told from the first one alone."""
    requests = folder / REQUESTS_FILE
    if not requests.is_file():
        return False
    with requests.open("rb") as lines:
        return lines.readline().endswith(b"\n")


def read_info(folder: Path) -> dict[str, Any]:
    """run.json alone: a fraction of a folder's bytes. Raises ValueError as ``read_run`` does."""
    info_path = folder / RUN_FILE
    try:
        info = json.loads(info_path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{folder} is not a run folder: it has no readable {RUN_FILE}") from None
    except ValueError as error:
        raise ValueError(f"{info_path} is damaged: {error}") from None
    if not isinstance(info, dict) or not isinstance(info.get("version"), int):
        raise ValueError(f"{info_path} is not a run description: it has no version")
    if info["version"] > VERSION:
        raise ValueError(
            f"{info_path} was written by a newer fgbench (version {info['version']}, this reads {VERSION})"
        )
    return info


def find_runs(root: str | Path) -> list[Path]:
    """Run folders right under ``root`` and in the sweeps there, oldest first by the time in their names; none
    if there is no root."""
    root = Path(root)
    if not root.is_dir():
        return []
    found = [file.parent for file in root.glob(f"*/{RUN_FILE}")]
    for sweep in root.glob(f"*/{SWEEP_FILE}"):
        found += [file.parent for file in sweep.parent.glob(f"*/{RUN_FILE}")]
    return sorted(found, key=lambda folder: (folder.name, folder))


def named(root: Path, name: str) -> Path:
    """The run folder that a user means: a path, or the beginning of a name under ``root``.

    Raises:
        ValueError: there is none, or there are several.
    """
    if (Path(name) / RUN_FILE).is_file():
        return Path(name)
    runs = find_runs(root)
    exact = [path for path in runs if path.name == name]
    matching = exact or [path for path in runs if path.name.startswith(name.rstrip("/"))]
    if not matching or not name:
        raise ValueError(f"there is no run folder {name}, nor a run in {root} whose name begins so")
    if len(matching) > 1:
        names = ", ".join(path.name for path in matching[:3])
        raise ValueError(f"{len(matching)} runs in {root} begin with {name}: {names}, ...; say more of it")
    return matching[0]


def told(read: Callable[[Path], T], path: Path, damaged: Callable[[str], None]) -> T | None:
    """``read(path)``; None where it is damaged: ``damaged`` is told, and the others are not hidden by it."""
    try:
        return read(path)
    except ValueError as error:
        damaged(str(error))
        return None


def is_being_written(folder: Path) -> bool:
    """Whether the process that writes this run is alive: it holds a lock that the system takes back when the
    process ends, however it ends."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK_FILE).is_file():
        return False
    try:
        with FileLock(folder / LOCK_FILE, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # this user may not lock it
        return False


def _records(path: Path) -> Iterator[RequestRecord]:
    """A line that is not whole JSON can only be the last one: each is written in one piece and flushed."""
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield RequestRecord.from_dict(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number} is damaged: {error}") from None
