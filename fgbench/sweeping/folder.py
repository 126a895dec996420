"""Reads and writes a sweep's folder: sweep.json, and the run folders of its points.

sweep.json is rewritten when a point begins or ends. It is only for readers: a resumed sweep uses the run
folders to decide which points are done. So it does not matter when a sweep was killed.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from fgbench.exit_codes import STATUS
from fgbench.exit_status import ExitStatus, exit_status_of
from fgbench.results.environment import environment
from fgbench.results.files import fresh_folder, now, write_json
from fgbench.results.run import SWEEP_FILE, find_runs, read_info
from fgbench.spec.sweep import FREE, Settings
from fgbench.sweeping.plan import SweepPlan, SweepPoint

VERSION = 1
LOCK_FILE = ".lock"
MAX_BYTES = 32 * 1024**2


class SweepFolder:
    """The folder of one sweep, with the results of its points."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info
        self._runs: dict[str, list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
        for folder in find_runs(path):
            with contextlib.suppress(ValueError):  # a damaged run does not count
                self._remember(folder, read_info(folder))

    @classmethod
    def create(
        cls, root: Path, settings: dict[str, Any], plan_fingerprint: str, plan: SweepPlan
    ) -> SweepFolder:
        """Create ``root/<time>_sweep`` with its sweep.json."""
        info = {
            "version": VERSION,
            "status": "running",
            "settings": settings,
            "plan": plan_fingerprint,
            **plan.describe(),
            "points": [],
            "environment": environment(),
            "started": now(),
            "ended": None,
        }
        path = fresh_folder(root, "sweep")
        write_json(path / SWEEP_FILE, info)
        return cls(path, info)

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """Open an existing folder.

        Raises:
            ValueError: it is not a sweep's folder, or a newer version wrote it.
        """
        return cls(path, read_sweep(path))

    def save(self, **parts: Any) -> None:
        """Change values of sweep.json and write it."""
        self.info |= parts
        write_json(self.path / SWEEP_FILE, self.info)

    def describe(self, plan: SweepPlan) -> None:
        """Add the backends of a plan that sweep.json does not have yet."""
        described = plan.describe()
        self.save(systems={**self.info.get("systems", {}), **described["systems"]})

    def add(self, points: Sequence[SweepPoint], max_error_rate: float) -> None:
        """Add missing points to sweep.json, and update the status of the points that are done.

        The update is needed if a sweep was killed after a run ended, but before it wrote sweep.json.
        """
        listed = {entry["fingerprint"]: entry for entry in self.info["points"]}
        for point in points:
            entry = listed.setdefault(point.fingerprint, point.to_json() | {"status": "pending", "run": None})
            if (done := self.result(point, max_error_rate)) is not None:
                path, _, exit_status = done
                _set_status(entry, STATUS[exit_status.code], path, exit_status.sentence)
        self.save(points=list(listed.values()))

    def mark(self, point: SweepPoint, status: str, run: Path | None = None, error: str = "") -> None:
        """Set the status of a point in sweep.json."""
        for entry in self.info["points"]:
            if entry["fingerprint"] == point.fingerprint:
                _set_status(entry, status, run, error)
        self.save()

    def ended(self, point: SweepPoint, exit_status: ExitStatus, run: Path | None) -> None:
        """Record that a point ended. If ``run`` is None, the point's newest new run folder is used."""
        if run is None:
            known = {path for path, _ in self._runs[point.fingerprint]}
            new = [path for path in find_runs(self.path) if path not in known]
            run = next((p for p in reversed(new) if _info(p).get("point") == point.fingerprint), None)
        if run is not None:
            self._remember(run, read_info(run))
        self.mark(point, STATUS[exit_status.code], run, exit_status.sentence)

    def result(
        self, point: SweepPoint, max_error_rate: float
    ) -> tuple[Path, dict[str, Any], ExitStatus] | None:
        """Return the newest valid run of the point: folder, run.json and exit status.

        Returns None if the point must be run, or run again.
        """
        runs = sorted(self._runs[point.fingerprint], key=lambda run: str(run[1].get("started")))
        for folder, info in reversed(runs):
            if info.get("status") != "complete":
                continue
            if (exit_status := exit_status_of(info, max_error_rate)).measured:
                return folder, info, exit_status
        return None

    def _remember(self, folder: Path, info: dict[str, Any]) -> None:
        if isinstance(fingerprint := info.get("point"), str):
            self._runs[fingerprint].append((folder, info))

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Lock the folder while the sweep runs, and keep the status in sweep.json up to date.

        The status is ``running`` in the context, and ``interrupted`` or ``failed`` after an exception.

        Raises:
            ValueError: another process runs the sweep in this folder.
        """
        with _locked(self.path):
            self.save(status="running", ended=None)
            try:
                yield
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt)
                self.save(status="interrupted" if interrupted else "failed", ended=now())
                raise

    def finish(self, code: int) -> None:
        """Set the final status. ``code`` is the worst exit code of all points."""
        self.save(status="complete" if ExitStatus(code).measured else "failed", ended=now())


def _set_status(entry: dict[str, Any], status: str, run: Path | None, error: str) -> None:
    entry |= {"status": status, "run": run.name if run else None}
    entry.pop("error", None)
    if error:
        entry["error"] = error


def read_sweep(path: Path) -> dict[str, Any]:
    """Read sweep.json; raises ValueError like ``SweepFolder.open``."""
    file = path / SWEEP_FILE
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file} is larger than {MAX_BYTES} bytes: no sweep wrote it")
        info = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path} is not a sweep's folder: it has no readable {SWEEP_FILE}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(info, dict) or not isinstance(info.get("version"), int):
        raise ValueError(f"{file} does not describe a sweep: it has no version")
    if info["version"] > VERSION:
        raise ValueError(
            f"{file} was written by a newer fgbench (version {info['version']}, this reads {VERSION}): "
            "update fgbench"
        )
    if not isinstance(info.get("points"), list) or not isinstance(info.get("settings"), dict):
        raise ValueError(f"{file} does not describe a sweep: it lacks its settings or its points")
    return info


def find_sweeps(root: Path) -> list[Path]:
    """Return the sweep folders directly in ``root``, oldest first."""
    return sorted(file.parent for file in root.glob(f"*/{SWEEP_FILE}")) if root.is_dir() else []


def _info(folder: Path) -> dict[str, Any]:
    try:
        return read_info(folder)
    except ValueError:
        return {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a sweep folder. The system releases it when the process ends in any way."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"another process is running the sweep in {path}: wait until it ends") from None
    try:
        yield
    finally:
        lock.release()


def to_resume(folder: Path | None, wanted: Settings, given: Collection[str]) -> SweepFolder:
    """Return the sweep to resume.

    It is ``folder`` if that is set, else the newest sweep with the options ``given``, or the newest of all if
    no options are given.

    Raises:
        ValueError: there is no such sweep; the message says how the newest one differs.
    """
    if folder is not None:
        return SweepFolder.open(folder)
    root = wanted.load.results
    sweeps = find_sweeps(root)
    if not sweeps:
        raise ValueError(f"{root} holds no sweep to resume: leave out --resume, or give another --results")
    if not set(given) - set(FREE):
        return SweepFolder.open(sweeps[-1])
    plan = wanted.checked().plan
    matching = [path for path in sweeps if read_sweep(path).get("plan") == plan]
    if not matching:
        # raises an error that says which option differs, if it affects figures
        resumed_settings(SweepFolder.open(sweeps[-1]), wanted, given)
        raise ValueError(
            f"none of the {len(sweeps)} sweeps in {root} has exactly these options: to resume the newest, "
            f"use --resume {sweeps[-1]}"
        )
    return SweepFolder.open(matching[-1])


def resumed_settings(sweep: SweepFolder, wanted: Settings, given: Collection[str]) -> Settings:
    """Return the settings of a sweep to resume, with the ``given`` options that affect no figure.

    Raises:
        ValueError: another of the given options differs from the sweep's.
    """
    try:
        own = Settings.from_json(sweep.info["settings"])
    except ValueError as error:
        raise ValueError(f"{sweep.path}: {error}; perhaps another version of fgbench began it") from None
    if own.plan != sweep.info.get("plan"):
        raise ValueError(
            f"another version of fgbench began the sweep in {sweep.path}, and its settings have another "
            "meaning here: start a new sweep"
        )
    try:
        return own.with_given(wanted, given)
    except ValueError as error:
        raise ValueError(f"{sweep.path}: {error}") from None


def unfinished_sweep(settings: Settings) -> Path | None:
    """Return the newest sweep with the same options that is not complete, or None."""
    sweeps = _sweeps_like(settings)
    return next((path for path, info in sweeps if info.get("status") != "complete"), None)


def newest_sweep(settings: Settings) -> SweepFolder | None:
    """Return the newest sweep with the same options, complete or not; None if there is none."""
    path = next((path for path, _ in _sweeps_like(settings)), None)
    return None if path is None else SweepFolder.open(path)


def _sweeps_like(settings: Settings) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the readable sweeps with the same options and their sweep.json, the newest first."""
    for path in reversed(find_sweeps(settings.load.results)):
        with contextlib.suppress(ValueError):
            info = read_sweep(path)
            if info.get("plan") == settings.plan:
                yield path, info
