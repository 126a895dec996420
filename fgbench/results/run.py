"""A run folder as a value, and reading one back, whole or killed midway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from fgbench.metrics.accounts import MachineAccount
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import Summary, summarize
from fgbench.metrics.trimming import Trim
from fgbench.results.table import pack_table, read_table, records_of

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
        """As ``status_of``."""
        return status_of(self.info)

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
        ValueError: ``path`` is no run folder, a file of it is damaged, or a later version wrote it.
    """
    folder = Path(path)
    return Run(folder, read_info(folder), read_records(folder))


def read_records(folder: Path) -> tuple[RequestRecord, ...]:
    """The requests in the order in which they ended: of requests.jsonl, or of a packed run's Parquet file.

    Raises:
        ValueError: the file is damaged.
    """
    requests, table = folder / REQUESTS_FILE, folder / TABLE_FILE
    if not requests.exists() and table.is_file():
        return tuple(sorted(records_of(read_table(table)), key=lambda record: record.finished or 0.0))
    return tuple(_records(requests))


def pack(folder: Path) -> int:
    """Make a complete run's folder small, for an archive or a repository, and return the bytes saved.

    requests.parquet is written again, with the same values in about a quarter of the bytes of requests.jsonl.
    Then requests.jsonl and the server's log are removed.

    Raises:
        ValueError: the run is not complete, or a file is damaged.
    """
    info = read_info(folder)
    if info.get("status") != "complete":
        raise ValueError(f"{folder} is {status_of(info)}: only complete runs are packed")
    before, records = _size(folder), read_records(folder)
    pack_table(folder / TABLE_FILE, records)
    if records_of(read_table(folder / TABLE_FILE)) != sorted(records, key=lambda record: record.index):
        raise RuntimeError(
            f"{folder / TABLE_FILE} does not give back the run's requests; nothing was removed"
        )
    for name in (REQUESTS_FILE, LOG_FILE):
        (folder / name).unlink(missing_ok=True)
    return before - _size(folder)


def _size(folder: Path) -> int:
    """Bytes of its files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def has_requests(folder: Path) -> bool:
    """Whether a request had ended and is complete on disk. Only the first one is looked at."""
    requests = folder / REQUESTS_FILE
    if not requests.is_file():
        return (folder / TABLE_FILE).is_file()
    with requests.open("rb") as lines:
        return lines.readline().endswith(b"\n")


def read_info(folder: Path) -> dict[str, Any]:
    """run.json alone: a fraction of a folder's bytes. Raises ValueError as ``read_run`` does."""
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
            f"{path} was written by a newer fgbench (version {info['version']}, this reads {VERSION})"
        )
    try:
        msgspec.convert(info, _Info)
        trim_of(info)
        MachineAccount.of(info)
        if info.get("summary") is not None:
            Summary.from_dict(info["summary"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return info


def status_of(info: dict[str, Any]) -> str:
    """``complete``, ``interrupted``, ``failed``, or ``incomplete``: it was killed, or is still running."""
    status = str(info.get("status", "running"))
    return "incomplete" if status == "running" else status


def trim_of(info: dict[str, Any]) -> Trim:
    """What the run was to leave out of its figures."""
    said = info.get("trim") or {}
    return Trim.parse(said.get("start"), said.get("end"))


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


def find_run(root: Path, name: str) -> Path:
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


def run_folders(path: str | Path) -> list[Path]:
    """``path`` where it is a run folder, else the run folders in it, as ``find_runs`` finds them.

    Raises:
        ValueError: there are none.
    """
    path = Path(path)
    found = [path] if (path / RUN_FILE).exists() else find_runs(path)
    if not found:
        raise ValueError(f"{path} is neither a run folder nor a folder of runs: it holds no {RUN_FILE}")
    return found


def readable(read: Callable[[Path], T], folders: Iterable[Path], left_out: Callable[[str], None]) -> list[T]:
    """What ``read`` makes of each run folder. One that is damaged does not hide the others: it is left out,
    and ``left_out`` gets the sentence that names it."""
    found = []
    for folder in folders:
        try:
            found.append(read(folder))
        except ValueError as error:  # noqa: PERF203
            left_out(str(error))
    return found


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


_decode_record = msgspec.json.Decoder(RequestRecord).decode


def _records(path: Path) -> Iterator[RequestRecord]:
    """A line that is not whole can only be the last one: each is written in one piece and flushed."""
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
    """The types of what is read from run.json, so that a damaged value is found where it is read."""

    status: str = "running"
    model: str | None = None
    backend: _Backend | None = None
    workload: _Workload | None = None
    warmup: int | None = None
    trim: _Trim | None = None
    server_stats: _ServerStats | None = None
    environment: dict[str, Any] | None = None


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


def stored_summary(folder: Path, info: dict[str, Any]) -> Summary:
    """As the run's ``info`` has it; of a run that was killed before it had one, over the requests that had
    ended. Raises ValueError where those are damaged."""
    if info.get("summary") is not None:
        return Summary.from_dict(info["summary"])
    return summary_of(Run(folder, info, read_records(folder)))


def summary_of(run: Run) -> Summary:
    """As ``fgbench run`` would have ended with them."""
    return summarize(run.records, offered_rate=offered_rate(run.info), trim=trim_of(run.info))


def offered_rate(info: dict[str, Any]) -> float | None:
    """Requests per second the workload asked for on average; None where it did not: in a closed loop, or not
    known."""
    work = info.get("workload") or {}
    process = work.get("arrival_process") or {}
    if "concurrency" in process or not work.get("rate"):
        return None
    rate = float(work["rate"])
    return (rate + float(process["rate_to"])) / 2 if "rate_to" in process else rate
