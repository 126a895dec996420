"""Shows each run in one line. Reads a run's requests only if run.json lacks the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from fgbench.metrics.summary import Summary
from fgbench.report.marks import INCOMPLETE, Mark, marks_of, merged, signs
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
    def model(self) -> str:
        """The last part of its name, as in comparisons."""
        return PurePath(str(self.info.get("model", "unknown"))).name

    @property
    def dataset(self) -> str:
        return str((self.info.get("workload") or {}).get("dataset", "unknown"))

    @property
    def marks(self) -> dict[Mark, str]:
        """The marks of the run with their details. Whether it is complete is shown in another way."""
        found = marks_of(self.info, self.summary)
        found.pop(INCOMPLETE, None)
        return found

    @property
    def troubles(self) -> list[str]:
        """Return the status if the run is not complete, and how many requests were not answered."""
        said = [] if self.status == "complete" else [self.status]
        said += [f"{self.summary.failed} failed"] if self.summary.failed else []
        return said + ([f"{self.summary.rejected} rejected"] if self.summary.rejected else [])

    @property
    def planned(self) -> int:
        """Number of requests in the workload."""
        return int((self.info.get("workload") or {}).get("num_prompts") or 0)

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
            "marks": [*(mark.words for mark in self.marks), *self.troubles],
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
    """Return one table per folder, model and dataset, one row per run, the newest first. It fits 80 columns.

    Only as much of a run's name is shown as ``results show`` needs. The other columns show the rest.
    """
    from rich.console import Group
    from rich.text import Text

    tables: dict[tuple[Path, str, str], list[Overview]] = {}
    for run in sorted(runs, key=lambda run: run.path.name, reverse=True):
        tables.setdefault((run.path.parent, run.model, run.dataset), []).append(run)
    parts = [_table(*key, some, root) for key, some in tables.items()]
    legend = "; ".join(f"{mark.sign} {mark.words}" for mark in merged(run.marks for run in runs))
    return Group(*parts, *([Text(legend, style="yellow")] if legend else []))


def _table(folder: Path, model: str, dataset: str, runs: Sequence[Overview], root: Path) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    name = str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
    title = Text(" · ".join([*([] if name == "." else [name]), model, dataset]), style="bold")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    table.add_column("run", overflow="fold", min_width=15)
    shortest = _shortest([run.path.name for run in runs])
    table.add_column("backend", overflow="fold", min_width=12)
    for heading in ("load", "seed", "ended", "JCT /\ntoken", "p99\nJCT", "TTFT"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("", no_wrap=True)
    for run in runs:
        work, figures = run.info.get("workload") or {}, run.summary
        table.add_row(
            shortest[run.path.name],
            "\n".join([run.backend, *run.troubles]),
            load_in_words(work),
            str(work.get("seed", "-")),
            _of_planned(run),
            seconds(figures.figure("normalized_latency")),
            seconds(figures.figure("jct", "p99")),
            seconds(figures.figure("ttft")),
            signs(run.marks).replace(" ", ""),
            style="dim" if run.status not in ("complete", "running") else None,
        )
    return table


def _shortest(names: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique beginning of each name, at least its time: ``20261126-003903``."""
    ordered = sorted(names)
    found = {}
    for before, name, after in zip(["", *ordered], ordered, [*ordered[1:], ""], strict=False):
        shared = max(len(commonprefix([name, other])) for other in (before, after))  # noqa: RUF071 (no paths)
        found[name] = name[: max(shared + 1, len(name.partition("_")[0]))]
    return found


def _of_planned(run: Overview) -> str:
    """Return ``37/100``, or ``100`` if all requests ended, or all that the duration allowed."""
    ended = run.summary.requests + run.summary.trimmed
    complete = ended == run.planned or (run.status == "complete" and run.info.get("duration_limit_s"))
    return number(ended, 6) if complete else f"{number(ended, 6)}/{number(run.planned, 6)}"


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
