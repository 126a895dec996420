"""Writes a run folder. If the run is killed, every finished request is already on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from filelock import FileLock

from fgbench.metrics.record import RequestRecord
from fgbench.results.files import fresh_folder, now, write_json
from fgbench.results.run import (
    LOCK_FILE,
    LOG_FILE,
    REQUESTS_FILE,
    RUN_FILE,
    SPEC_FILE,
    TABLE_FILE,
    VERSION,
)
from fgbench.results.table import write_table
from fgbench.spec.files import write_options
from fgengine.files import named_errors


class RunWriter:
    """Writes one run folder, from its creation to ``finish``.

    As a context manager, it marks the run as failed or interrupted if an exception occurs.
    """

    def __init__(self, root: Path, info: dict[str, Any], options: Mapping[str, Any] | None = None) -> None:
        """Create ``root/<time>_<backend>_<dataset>_r<rate>_s<seed>`` and write run.json, status ``running``.

        In a closed loop, the name has ``c<concurrency>`` instead of ``r<rate>``.

        Args:
            root: Folder of the run folders.
            info: Values for run.json: ``backend, model, workload, fingerprint, environment, ...``.
            options: Options that repeat the run, for spec.toml.
        """
        self._start = time.monotonic()
        self.info: dict[str, Any] = {
            "version": VERSION,
            "status": "running",
            **info,
            "started": now(),
            "ended": None,
            "duration_s": None,
            "summary": None,
        }
        self.path = _make_folder(root, info)
        self._write_info()
        if options is not None:
            write_options(self.path / SPEC_FILE, options)
        self._requests = (self.path / REQUESTS_FILE).open("ab", buffering=0)
        self._lock = FileLock(self.path / LOCK_FILE)
        with suppress(OSError):  # the file system may have no locks
            self._lock.acquire(blocking=False)

    @property
    def log_path(self) -> Path:
        """Path of the server's log."""
        return self.path / LOG_FILE

    def describe(self, **parts: Any) -> None:
        """Add values to run.json that became known after the start."""
        self.info.update(parts)
        self._write_info()

    def append(self, record: RequestRecord) -> None:
        """Write a record without buffering, so that it survives a crash of this process."""
        line = msgspec.json.encode(record) + b"\n"
        with named_errors(self.path / REQUESTS_FILE):
            while line:  # a disk that is nearly full may write only a part
                line = line[self._requests.write(line) :]

    def finish(
        self, status: str, records: Sequence[RequestRecord], summary: dict[str, Any] | None, **parts: Any
    ) -> str:
        """Write the final run.json, then requests.parquet, which can be made again from requests.jsonl.

        Args:
            status: complete, interrupted or failed.

        Returns a sentence if requests.parquet could not be written; else an empty text.
        """
        self._requests.close()
        self.info |= {
            "status": status,
            "ended": now(),
            "duration_s": round(time.monotonic() - self._start, 3),
            "summary": summary,
            **parts,
        }
        self._write_info()
        self._unlock()
        try:
            write_table(self.path / TABLE_FILE, records)
        except OSError as error:
            return f"{self.path / TABLE_FILE} could not be written ({error.strerror}); all requests are saved"
        return ""

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests.close()
        self._unlock()
        if self.info["status"] == "running" and error is not None:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # a full disk; the run is then shown as incomplete
                self.describe(status=status, error=str(error) or type(error).__name__, ended=now())

    def _unlock(self) -> None:
        self._lock.release()
        (self.path / LOCK_FILE).unlink(missing_ok=True)

    def _write_info(self) -> None:
        write_json(self.path / RUN_FILE, self.info)


def _make_folder(root: Path, info: dict[str, Any]) -> Path:
    workload = info["workload"]
    workers = workload.get("arrival_process", {}).get("concurrency")
    load = f"r{float(workload['rate']):g}" if workers is None else f"c{workers}"
    name, dataset, seed = info["backend"]["name"], workload["dataset"], workload["seed"]
    return fresh_folder(root, str(name), str(dataset), load, f"s{seed}")
