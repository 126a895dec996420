"""Parts in processes of their own, several at once, each given so long and no longer."""

from __future__ import annotations

import json
import subprocess
import sys
import time as clock
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgbench.backends.started import ServerProcess
from gpu.report import Findings

SPOILT = 75
"""Exit status of a part that a check left without a GPU."""
GRACE_SECONDS = 15.0
"""A part that should have ended by itself is stopped so much later."""
MOST_STARTS = 6
WORTH_STARTING = 12.0
"""Seconds: Python, torch and CUDA take half of them."""
POLL_SECONDS = 0.1

Command = Callable[[str, float, int, Path], Sequence[str]]
"""Part, seconds, checks done before, file to write into -> the process that runs it."""


@dataclass
class Isolated:
    """One part, in as many processes as it takes."""

    name: str
    sections: tuple[str, ...]
    """What it is to find something for."""
    folder: Path
    command: Command
    ends: float
    """On the monotonic clock."""
    found: list[Findings] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._starts = 0
        self._checked = 0

    def start(self) -> None:
        self._starts += 1
        stem = "".join(c if c.isalnum() or c in ".-" else "-" for c in f"{self.name}.{self._starts}")
        self._into = self.folder / f"{stem}.json"
        argv = self.command(self.name, self.ends - clock.monotonic(), self._checked, self._into)
        self._process = ServerProcess(argv, self.folder / f"{stem}.log")

    def poll(self) -> bool:
        """Whether it goes on; with what is left in a new process, where a check ended the last one."""
        if self._process.alive():
            if clock.monotonic() < self.ends + GRACE_SECONDS:
                return True
            self.stop()
            self._take_in("it ran past its time and was stopped")
            return False
        status, words = self._process.exit_status, self._process.tail()
        self.stop()
        died = f"its process ended with status {status}; its log ends:\n{words}"
        before = self._checked
        self._take_in("" if status in (0, SPOILT) else died)
        again = self._starts < MOST_STARTS and self.ends - clock.monotonic() > WORTH_STARTING
        if status == 0 or self._checked == before or not again:
            return False
        self.start()
        return True

    def stop(self) -> None:
        with suppress(subprocess.TimeoutExpired):  # stuck in the driver: the others go on
            self._process.stop()

    def _take_in(self, wrong: str) -> None:
        """What the process wrote; ``wrong``: how it ended, if that was not well."""
        try:
            written = json.loads(self._into.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            written = {"device": {}, "findings": []}
        self.device = self.device or written["device"]
        found = [Findings.from_json(one) for one in written["findings"]]
        self.found += found
        self._checked += sum(len(one.rows) for one in found if one.checks)
        if not wrong:
            return
        if found and found[-1].checks and found[-1].rows:
            found[-1].note(f"{self.name}: {wrong}")  # the row at work says that it is wrong
        elif found:
            found[-1].fail(wrong)
        known = {one.name for one in self.found}
        for section in self.sections:
            if section not in known:
                lost = Findings(section, 0.0)
                lost.fail(f"{self.name} did not come to it" if found else wrong)
                self.found.append(lost)


def run_isolated(
    parts: Sequence[tuple[str, tuple[str, ...]]],
    folder: Path,
    command: Command,
    seconds: float,
    ended: Callable[[Isolated], None],
) -> None:
    """All parts (name, sections) at once; ``ended`` is told of each as it ends. Nothing is left running,
    whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = clock.monotonic() + seconds
    running: list[Isolated] = []
    try:
        for name, sections in parts:
            running.append(Isolated(name, sections, folder, command, ends))
            running[-1].start()
        while running:
            for one in list(running):
                if not one.poll():
                    running.remove(one)
                    ended(one)
            clock.sleep(POLL_SECONDS)
    finally:
        for one in running:
            one.stop()


def this_script(options: Sequence[str]) -> Command:
    """``options``: those that every part shares."""

    def command(name: str, seconds: float, after: int, into: Path) -> list[str]:
        script = str(Path(__file__).parent.parent / "gpu_check.py")
        job = ["--part", name, "--seconds", f"{seconds:.1f}", "--after", str(after), "--into", str(into)]
        return [sys.executable, script, *options, *job]

    return command
