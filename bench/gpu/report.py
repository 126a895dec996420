"""What was found: rows, sentences and targets of each section, as tables and as one JSON value."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from fgbench.results.environment import environment
from fgbench.results.files import write_json

VERSION = 1
WIDTH = 150
"""Columns where the output is no terminal."""
PACKAGES = ("torch", "triton", "transformers", "numpy", "vllm")
Status = Literal["done", "skipped", "wrong", "failed"]
BETTER_FIRST = ("done", "skipped", "wrong", "failed")
Columns = Mapping[str, Callable[[dict[str, Any]], str]]
"""A table's columns: what stands over each, and what a row shows in it."""


@dataclass
class Target:
    """A figure that is to be reached on one H100."""

    what: str
    value: float
    limit: float
    at_most: bool = True
    judged: bool = True
    """False: measured, but on a device that the target is not for."""

    @property
    def met(self) -> bool | None:
        if not self.judged:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        verdict = {None: "not judged here", True: "met", False: "MISSED"}[self.met]
        sign = "at most" if self.at_most else "at least"
        return f"{verdict}: {self.what} {self.value:.3g} ({sign} {self.limit:g})"


@dataclass
class Findings:
    """Of one section; kept whatever becomes of the rest of it."""

    name: str
    budget_seconds: float
    status: Status = "done"
    sentence: str = ""
    """Why it failed or was skipped."""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """What is too much for the table: kernels by time, settings."""

    def __post_init__(self) -> None:
        self.keep: Callable[[], None] = lambda: None
        """Called with each row, so that a process that dies loses none."""

    def row(self, **fields: Any) -> None:
        """``right=False`` says that what was checked is wrong."""
        self.rows.append(fields)
        self.keep()

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    @property
    def checks(self) -> bool:
        """Whether its rows say right or wrong."""
        return self.name == "correctness"

    def fail(self, sentence: str) -> None:
        self.status, self.sentence = "failed", sentence

    def skip(self, sentence: str) -> None:
        self.status, self.sentence = "skipped", sentence

    def settle(self) -> None:
        if self.status == "done" and any(row.get("right") is False for row in self.rows):
            self.status = "wrong"

    def add(self, other: Findings) -> None:
        """Of another part of the same section."""
        self.status = max(self.status, other.status, key=BETTER_FIRST.index)
        self.sentence = "; ".join(filter(None, (self.sentence, other.sentence)))
        for mine, theirs in (
            (self.rows, other.rows),
            (self.notes, other.notes),
            (self.targets, other.targets),
        ):
            mine.extend(theirs)
        self.details |= other.details
        self.seconds += other.seconds
        self.budget_seconds += other.budget_seconds

    def to_json(self) -> dict[str, Any]:
        targets = [asdict(target) | {"met": target.met} for target in self.targets]
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "targets"}
        plain: dict[str, Any] = _plain({**parts, "targets": targets})
        return plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Findings:
        targets = [Target(**{k: v for k, v in target.items() if k != "met"}) for target in data["targets"]]
        return cls(**{**data, "targets": targets})


class Report:
    def __init__(self, minutes: float, out: Path | None) -> None:
        """``out``: the file that is written after every section; None: none is."""
        self.out = out
        self.device: dict[str, Any] = {}
        self.sections: dict[str, Findings] = {}
        self.seconds = 0.0
        self._console = Console(highlight=False, width=WIDTH if not Console().is_terminal else None)
        surroundings = environment()
        self._about = {
            "version": VERSION,
            "bench": "gpu_check",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "minutes": minutes,
            "versions": versions(),
            "git_commit": surroundings["git_commit"],
            "environment": surroundings,
        }

    @property
    def wrong(self) -> bool:
        return any(section.status in ("wrong", "failed") for section in self.sections.values())

    @property
    def targets(self) -> list[Target]:
        return [target for section in self.sections.values() for target in section.targets]

    def to_json(self) -> dict[str, Any]:
        sections = {name: section.to_json() for name, section in self.sections.items()}
        targets = [{"what": target.what, "value": target.value, "met": target.met} for target in self.targets]
        about = {**self._about, "device": self.device, "seconds": self.seconds, "wrong": self.wrong}
        plain: dict[str, Any] = _plain({**about, "targets": targets, "sections": sections})
        return plain

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, soft_wrap=True)

    def add(self, found: Findings, title: str, columns: Columns, seconds: float) -> None:
        """Prints it, and writes all there is so far. ``seconds``: since the beginning."""
        self.seconds = seconds
        if found.rows:
            table = Table(title=title, title_justify="left")
            for name in columns:
                table.add_column(name, overflow="fold")
            for row in found.rows:
                style = "bold red" if row.get("right") is False else None
                table.add_row(*(show(row) for show in columns.values()), style=style)
            self._console.print(table)
        for sentence in (*found.notes, *map(str, found.targets)):
            self.say(f"  {sentence}")
        why = f": {found.sentence}" if found.sentence else ""
        self.say(f"{title}: {found.status}{why} ({found.seconds:.0f} s; {seconds:.0f} s in all)\n")
        if found.name in self.sections:
            self.sections[found.name].add(found)
        else:
            self.sections[found.name] = found
        self.save()

    def save(self) -> None:
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.out, self.to_json())


def describe(device: torch.device) -> dict[str, Any]:
    """The card and its driver; of a CPU its name and threads."""
    if device.type != "cuda":
        return {"type": "cpu", "name": environment()["cpu"], "threads": torch.get_num_threads()}
    card = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": card.name,
        "memory_bytes": card.total_memory,
        "multiprocessors": card.multi_processor_count,
        "compute_capability": f"{card.major}.{card.minor}",
        "driver": ask_driver("driver_version"),
    }


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    return found | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def ask_driver(what: str) -> str | None:
    """``name`` or ``driver_version`` of the first card, without taking any of its memory."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.strip().splitlines()), None)


def _plain(value: Any) -> Any:
    """As JSON can hold it: no infinity, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
