"""Shows each run in one line. Reads a run's requests only if run.json lacks the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.exit_status import client_was_the_limit
from fgbench.metrics.accounts import MachineAccount
from fgbench.metrics.summary import Summary
from fgbench.report.run_tables import load_in_words
from fgbench.results.run import find_runs, is_being_written, read_info, readable, stored_summary
from fgengine.units import number, seconds

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Overview:
    """What a list shows of one run."""

    path: Path
    info: dict[str, Any]
    """Content of run.json."""
    status: str
    """Like ``Run.status``, but ``running`` only if the process that writes the run is alive."""
    summary: Summary
    """Figures; for an incomplete run, of the requests that had ended."""

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return str((self.info.get("backend") or {}).get("name", "unknown"))

    @property
    def planned(self) -> int:
        """Number of requests in the workload."""
        return int((self.info.get("workload") or {}).get("num_prompts") or 0)

    @property
    def marks(self) -> list[str]:
        """Warnings about the figures, each in a few words."""
        found = ["overloaded"] if self.summary.overloaded else []
        machine = MachineAccount.of(self.info)
        if machine is not None and machine.busy:
            found.append("busy machine")
        if client_was_the_limit(self.summary):
            found.append("client was the limit")
        if self.summary.failed:
            found.append(f"{self.summary.failed} failed")
        if self.summary.rejected:
            found.append(f"{self.summary.rejected} rejected")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``fgbench results list --json``."""
        work = self.info.get("workload") or {}
        return {
            "name": self.path.name,
            "path": str(self.path),
            "status": self.status,
            "backend": self.backend,
            "model": self.info.get("model"),
            "dataset": work.get("dataset"),
            "rate": work.get("rate"),
            "arrivals": work.get("arrivals"),
            "seed": work.get("seed"),
            "planned": self.planned,
            "started": self.info.get("started"),
            "marks": self.marks,
            "summary": self.summary.to_dict(),
        }


def overview(path: Path) -> Overview:
    """Read the overview of the run at ``path``; raises ValueError if it is damaged, like ``read_run``."""
    info = read_info(path)
    status = str(info.get("status", "running"))
    if status == "running" and not is_being_written(path):
        status = "incomplete"
    return Overview(path, info, status, stored_summary(path, info))


def overviews(root: Path, left_out: Callable[[str], None]) -> list[Overview]:
    """Return the overviews of all runs under ``root``, oldest first.

    ``left_out`` is called with a sentence for each damaged run, which is left out.
    """
    return readable(overview, find_runs(root), left_out)


def overview_tables(runs: Sequence[Overview], root: Path) -> Group:
    """Return one table per folder, with one row per run.

    Only the time in a run's name is shown. It is enough for ``results show``, and other columns show the
    rest.
    """
    from rich.console import Group

    folders: dict[Path, list[Overview]] = {}
    for run in runs:
        folders.setdefault(run.path.parent, []).append(run)
    return Group(*(_folder_table(folder, some, root) for folder, some in folders.items()))


def _folder_table(folder: Path, runs: Sequence[Overview], root: Path) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    name = str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
    title = None if name == "." else Text(name, style="bold")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    table.add_column("run", no_wrap=True)
    times = [_time(run.path) for run in runs]
    for heading in ("status", "backend", "dataset"):
        table.add_column(heading, overflow="fold")
    for heading in ("rate", "seed", "ended", "JCT /\ntoken", "p99\nJCT", "TTFT"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    for run in runs:
        work, figures = run.info.get("workload") or {}, run.summary
        table.add_row(
            run.path.name if times.count(_time(run.path)) > 1 else _time(run.path),
            run.status,
            run.backend,
            str(work.get("dataset", "-")),
            load_in_words(work),
            str(work.get("seed", "-")),
            _of_planned(run),
            seconds(figures.figure("normalized_latency")),
            seconds(figures.figure("jct", "p99")),
            seconds(figures.figure("ttft")),
            ", ".join(run.marks),
            style="dim" if run.status not in ("complete", "running") else None,
        )
    return table


def _time(path: Path) -> str:
    """Return the time in a run's name.

    It is ``20261126-003903`` for ``20261126-003903_fastgen_sharegpt_r2.4_s0``.
    """
    return path.name.partition("_")[0]


def _of_planned(run: Overview) -> str:
    """Return ``37 of 100``, the requests ended and planned.

    Only the first number is shown if all requests ended, or the run reached its time limit.
    """
    ended = run.summary.requests + run.summary.trimmed
    finished = ended == run.planned or (run.status == "complete" and run.info.get("duration_limit_s"))
    return number(ended, 6) if finished else f"{number(ended, 6)} of {number(run.planned, 6)}"


def answer_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return the answer to a SQL query as a table for the terminal."""
    from rich.table import Table

    table = Table()
    numeric = [
        any(isinstance(row[i], int | float) for row in rows)
        and not any(isinstance(row[i], str) for row in rows)
        for i in range(len(columns))
    ]
    for column, right in zip(columns, numeric, strict=True):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else _shown(value) for value in row))
    return table


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
