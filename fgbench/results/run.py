"""Reads run folders, complete or not, and finds and removes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from fgbench.metrics.accounts import MachineAccount
from fgbench.metrics.conditions import CacheAccount, Conditions
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import Summary, summarize
from fgbench.metrics.trimming import Trim
from fgbench.results.files import write_json
from fgbench.results.table import pack_table, read_table, records_of

T = TypeVar("T")
VERSION = 1
RUN_FILE = "run.json"
REQUESTS_FILE = "requests.jsonl"
SPEC_FILE = "spec.toml"
"""Options to repeat the run with ``fgbench run --config``."""
LOCK_FILE = ".lock"
"""Locked by the process that writes the run."""
TABLE_FILE = "requests.parquet"
LOG_FILE = "server.log"
SWEEP_FILE = "sweep.json"
"""File that marks a sweep folder, which contains run folders."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder in memory.

    run = read_run("results/20261126-003903_fastgen_sharegpt_r2.4_s0")
    run.status, len(run.records)
    """

    path: Path
    info: dict[str, Any]
    """Content of run.json; results/README.md describes it."""
    records: tuple[RequestRecord, ...]
    """Records in the order in which requests ended."""

    @property
    def status(self) -> str:
        """``complete``, ``interrupted``, ``failed`` or ``incomplete``; see ``status_of``."""
        return status_of(self.info)

    @property
    def complete(self) -> bool:
        """Whether all requests of the load ended."""
        return self.status == "complete"

    @property
    def fingerprint(self) -> str:
        """Hash of everything that affects the result; empty if run.json does not contain it."""
        return str(self.info.get("fingerprint", ""))


def read_run(path: str | Path) -> Run:
    """Read a run folder, even if the run was killed; an incompletely written last request is dropped.

    Raises:
        ValueError: ``path`` is not a run folder, one of its files is damaged, or a newer version wrote it.
    """
    folder = Path(path)
    return Run(folder, read_info(folder), read_records(folder))


def read_records(folder: Path) -> tuple[RequestRecord, ...]:
    """Read requests.jsonl, or a packed run's Parquet file, in the order in which the requests ended.

    Raises:
        ValueError: the file is damaged.
    """
    requests, table = folder / REQUESTS_FILE, folder / TABLE_FILE
    if not requests.exists() and table.is_file():
        return tuple(sorted(records_of(read_table(table)), key=lambda record: record.finished or 0.0))
    return tuple(_records(requests))


def pack(folder: Path, *, token_times: bool = True) -> int:
    """Make a complete run's folder small, for an archive or a repository, and return the bytes saved.

    requests.parquet is written again, with the same values in about a quarter of the bytes of requests.jsonl.
    Then requests.jsonl and the server's log are removed.

    Args:
        token_times: Whether the times of single tokens are kept. They are nearly all bytes of a packed run.
            Without them, run.json's summary holds what depends on them: the ITL, whether the load was above
            capacity, and whether tokens arrived in clumps.

    Raises:
        ValueError: the run is not complete, or a file is damaged.
    """
    info = read_info(folder)
    if info.get("status") != "complete":
        raise ValueError(f"{folder} is {status_of(info)}: only complete runs are packed")
    before, records = _size(folder), read_records(folder)
    summary = summary_of(Run(folder, info, tuple(records)))
    if not token_times:
        records = tuple(replace(record, token_times=()) for record in records)
    pack_table(folder / TABLE_FILE, records)
    if records_of(read_table(folder / TABLE_FILE)) != sorted(records, key=lambda record: record.index):
        raise RuntimeError(
            f"{folder / TABLE_FILE} does not give back the run's requests; nothing was removed"
        )
    if not token_times:
        write_json(folder / RUN_FILE, {**info, "token_times": False, "summary": summary.to_dict()})
    for name in (REQUESTS_FILE, LOG_FILE):
        (folder / name).unlink(missing_ok=True)
    return before - _size(folder)


def _size(folder: Path) -> int:
    """Bytes of its files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def has_requests(folder: Path) -> bool:
    """Whether at least one request had ended and is completely on disk. Reads only the first line."""
    requests = folder / REQUESTS_FILE
    if not requests.is_file():
        return (folder / TABLE_FILE).is_file()
    with requests.open("rb") as lines:
        return lines.readline().endswith(b"\n")


def read_info(folder: Path) -> dict[str, Any]:
    """Read only run.json, which is much faster than ``read_run``. Raises ValueError like ``read_run``."""
    path = folder / RUN_FILE
    try:
        info = msgspec.json.decode(path.read_bytes())
    except OSError:
        raise ValueError(f"{folder} is not a run folder: it has no readable {RUN_FILE}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(info, dict) or not isinstance(info.get("version"), int):
        raise ValueError(f"{path} is not a run description: it has no version")
    if info["version"] > VERSION:
        raise ValueError(
            f"{path} was written by a newer fgbench (version {info['version']}, this reads {VERSION}): "
            "update fgbench"
        )
    try:
        msgspec.convert(info, _Info)
        trim_of(info)
        MachineAccount.of(info)
        CacheAccount.of(info)
        Conditions.of(info)
        if info.get("summary") is not None:
            Summary.from_dict(info["summary"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return info


def status_of(info: dict[str, Any]) -> str:
    """Return ``complete``, ``interrupted``, ``failed`` or ``incomplete``, from run.json.

    ``incomplete`` means that the run was killed or is still running.
    """
    status = str(info.get("status", "running"))
    return "incomplete" if status == "running" else status


def trim_of(info: dict[str, Any]) -> Trim:
    """Return which part of the run its figures leave out, from run.json."""
    trim = info.get("trim") or {}
    return Trim.parse(trim.get("start"), trim.get("end"))


def find_runs(root: str | Path) -> list[Path]:
    """Return the run folders directly in ``root``, and in the sweep folders there.

    They are sorted by the time in their names, oldest first. Returns an empty list if ``root`` does not
    exist.
    """
    root = Path(root)
    if not root.is_dir():
        return []
    found = [file.parent for file in root.glob(f"*/{RUN_FILE}")]
    for sweep in root.glob(f"*/{SWEEP_FILE}"):
        found += [file.parent for file in sweep.parent.glob(f"*/{RUN_FILE}")]
    return sorted(found, key=lambda folder: (folder.name, folder))


def find_run(root: Path, name: str) -> Path:
    """Return the run folder for a path, a name under ``root``, or the start of such a name.

    Raises:
        ValueError: there is none, or there are several.
    """
    if (Path(name) / RUN_FILE).is_file():
        return Path(name)
    runs = find_runs(root)
    exact = [path for path in runs if path.name == name]
    matching = exact or [path for path in runs if path.name.startswith(name.rstrip("/"))]
    if not matching or not name:
        raise ValueError(
            f"there is no run folder {name}, and no name in {root} begins with it: "
            "'fgbench results list' shows the names"
        )
    if len(matching) > 1:
        names = ", ".join(path.name for path in matching[:3])
        raise ValueError(
            f"{len(matching)} runs in {root} begin with {name}: give a longer name ({names}, ...)"
        )
    return matching[0]


def run_folders(path: str | Path) -> list[Path]:
    """Return ``[path]`` if it is a run folder, else the run folders in it (see ``find_runs``).

    Raises:
        ValueError: there are none.
    """
    path = Path(path)
    found = [path] if (path / RUN_FILE).exists() else find_runs(path)
    if not found:
        raise ValueError(f"{path} is neither a run folder nor a folder of runs: it holds no {RUN_FILE}")
    return found


def readable(read: Callable[[Path], T], folders: Iterable[Path], left_out: Callable[[str], None]) -> list[T]:
    """Call ``read`` for each run folder and return the results.

    A damaged run is left out, and ``left_out`` is called with a sentence that names it.
    """
    found = []
    for folder in folders:
        try:
            found.append(read(folder))
        except ValueError as error:  # noqa: PERF203
            left_out(str(error))
    return found


def is_being_written(folder: Path) -> bool:
    """Whether the process that writes this run is alive.

    The process holds a lock, which the system releases when the process ends in any way.
    """
    from filelock import FileLock, Timeout

    if not (folder / LOCK_FILE).is_file():
        return False
    try:
        with FileLock(folder / LOCK_FILE, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # no permission to lock the file
        return False


_decode_record = msgspec.json.Decoder(RequestRecord).decode


def _records(path: Path) -> Iterator[RequestRecord]:
    """Yield the records in a file.

    Lines are written one after the other without buffering, so only the last line can be incomplete.
    """
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _decode_record(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number} is damaged: {error}") from None


class _ArrivalProcess(msgspec.Struct):
    concurrency: int | None = None
    rate_to: float | None = None


class _Workload(msgspec.Struct):
    dataset: str | None = None
    num_prompts: int | None = None
    rate: float | Literal["inf"] | None = None
    seed: int | None = None
    users: int | None = None
    arrivals: str | None = None
    arrival_process: _ArrivalProcess | None = None


class _Backend(msgspec.Struct):
    name: str | None = None
    policy: str | None = None
    url: str | None = None
    endpoint: str | None = None
    settings: dict[str, Any] | None = None


class _Trim(msgspec.Struct):
    start: str | None = None
    end: str | None = None


class _Counters(msgspec.Struct):
    uptime_seconds: float | None = None
    pressure_seconds: float | None = None
    copy_wait_seconds: float | None = None


class _ServerStats(msgspec.Struct):
    before: _Counters | None = None
    after: _Counters | None = None
    replicas: int = 1


class _Info(msgspec.Struct):
    """Types of the values in run.json, to detect damaged values while reading."""

    status: str = "running"
    model: str | None = None
    backend: _Backend | None = None
    workload: _Workload | None = None
    warmup: int | None = None
    trim: _Trim | None = None
    server_stats: _ServerStats | None = None
    environment: dict[str, Any] | None = None


def check_removable(folder: Path) -> None:
    """Raise ValueError if ``folder`` is not certainly a run folder, or is being written."""
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, not a run folder: nothing is removed")
    read_info(folder)
    if unknown := [entry.name for entry in folder.iterdir() if entry.is_symlink() or not entry.is_file()]:
        raise ValueError(f"{folder} holds {unknown[0]}, which no run wrote: remove it by hand")
    if is_being_written(folder):
        raise ValueError(f"the run in {folder} is still running: stop it first")


def remove(folder: Path) -> None:
    """Remove a run folder; raises ValueError like ``check_removable``."""
    check_removable(folder)
    # run.json is removed last, so that an interrupted removal can be repeated
    for entry in list(folder.iterdir()):
        if entry.name != RUN_FILE:
            entry.unlink()
    (folder / RUN_FILE).unlink()
    folder.rmdir()


FROM_TOKEN_TIMES = ("overloaded", "shortfall", "why_unjudged", "tokens_per_moment")
"""Figures of a summary that need the times of single tokens."""


def stored_summary(folder: Path, info: dict[str, Any]) -> Summary:
    """Return the summary in run.json.

    It is computed from the requests if the run was killed, or is older than the judgement of overload.

    Raises:
        ValueError: the requests are needed, and are damaged.
    """
    stored = info.get("summary")
    if stored is not None and ("why_unjudged" in stored or not has_requests(folder)):
        return Summary.from_dict(stored)
    return summary_of(Run(folder, info, read_records(folder)))


def summary_of(run: Run) -> Summary:
    """Compute the summary of a run from its records, like ``fgbench run`` does.

    If the times of single tokens were not stored, what depends on them is taken from run.json.
    """
    found = summarize(run.records, offered_rate=offered_rate(run.info), trim=trim_of(run.info))
    stored = run.info.get("summary")
    if run.info.get("token_times") is not False or not isinstance(stored, dict):
        return found
    kept = Summary.from_dict(stored)
    return replace(found, **{name: getattr(kept, name) for name in FROM_TOKEN_TIMES})


def offered_rate(info: dict[str, Any]) -> float | None:
    """Return the mean requests per second that the workload asks for.

    Returns None in a closed loop, or if the rate is unknown.
    """
    work = info.get("workload") or {}
    process = work.get("arrival_process") or {}
    if "concurrency" in process or not work.get("rate"):
        return None
    rate = float(work["rate"])
    return (rate + float(process["rate_to"])) / 2 if "rate_to" in process else rate
