"""A sweep's folder: sweep.json, and the run folders of its points, which alone say what is done.

sweep.json is rewritten as points begin and end, for readers; a sweep that goes on trusts the run folders, so
it does not matter at which moment it was killed.
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
    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info
        self._runs: dict[str, list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
        for folder in find_runs(path):
            with contextlib.suppress(ValueError):  # a damaged run is no result
                self._keep(folder, read_info(folder))

    @classmethod
    def create(
        cls, root: Path, settings: dict[str, Any], plan_fingerprint: str, plan: SweepPlan
    ) -> SweepFolder:
        """``root/<time>_sweep`` with its sweep.json."""
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
        """Raises ValueError for a folder of no sweep, or of one that a later version wrote."""
        return cls(path, read_sweep(path))

    def save(self, **parts: Any) -> None:
        self.info |= parts
        write_json(self.path / SWEEP_FILE, self.info)

    def add(self, points: Sequence[SweepPoint], max_error_rate: float) -> None:
        """Lists those that are not yet; says of all that are done by their run folders that they are: a sweep
        killed between the end of a run and its word here has not said it."""
        listed = {entry["fingerprint"]: entry for entry in self.info["points"]}
        for point in points:
            entry = listed.setdefault(point.fingerprint, point.to_json() | {"status": "pending", "run": None})
            if (done := self.result(point, max_error_rate)) is not None:
                path, _, how = done
                _say(entry, STATUS[how.code], path, how.sentence)
        self.save(points=list(listed.values()))

    def mark(self, point: SweepPoint, status: str, run: Path | None = None, error: str = "") -> None:
        for entry in self.info["points"]:
            if entry["fingerprint"] == point.fingerprint:
                _say(entry, status, run, error)
        self.save()

    def ended(self, point: SweepPoint, how: ExitStatus, run: Path | None) -> None:
        """``run``: None where it is not known; the newest of the point's that has appeared is taken."""
        if run is None:
            known = {path for path, _ in self._runs[point.fingerprint]}
            new = [path for path in find_runs(self.path) if path not in known]
            run = next((p for p in reversed(new) if _info(p).get("point") == point.fingerprint), None)
        if run is not None:
            self._keep(run, read_info(run))
        self.mark(point, STATUS[how.code], run, how.sentence)

    def result(
        self, point: SweepPoint, max_error_rate: float
    ) -> tuple[Path, dict[str, Any], ExitStatus] | None:
        """The newest of the point's runs that measured it; None where it has to be run, again or at all."""
        runs = sorted(self._runs[point.fingerprint], key=lambda run: str(run[1].get("started")))
        for folder, info in reversed(runs):
            if info.get("status") == "complete" and (how := exit_status_of(info, max_error_rate)).measured:
                return folder, info, how
        return None

    def _keep(self, folder: Path, info: dict[str, Any]) -> None:
        if isinstance(fingerprint := info.get("point"), str):
            self._runs[fingerprint].append((folder, info))

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """sweep.json says ``running`` meanwhile, and how it ended where it did not get to ``finish``.

        Raises:
            ValueError: another process is at work in this folder.
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
        """``code``: the worst of all points."""
        self.save(status="complete" if ExitStatus(code).measured else "failed", ended=now())


def _say(entry: dict[str, Any], status: str, run: Path | None, error: str) -> None:
    entry |= {"status": status, "run": run.name if run else None}
    entry.pop("error", None)
    if error:
        entry["error"] = error


def read_sweep(path: Path) -> dict[str, Any]:
    """sweep.json. Raises ValueError as ``SweepFolder.open`` does."""
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
            f"{file} was written by a newer fgbench (version {info['version']}, this reads {VERSION})"
        )
    if not isinstance(info.get("points"), list) or not isinstance(info.get("settings"), dict):
        raise ValueError(f"{file} does not describe a sweep: it lacks its settings or its points")
    return info


def find_sweeps(root: Path) -> list[Path]:
    """Folders of sweeps right under ``root``, oldest first."""
    return sorted(file.parent for file in root.glob(f"*/{SWEEP_FILE}")) if root.is_dir() else []


def _info(folder: Path) -> dict[str, Any]:
    try:
        return read_info(folder)
    except ValueError:
        return {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system takes it back however the process ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"another process is running the sweep in {path}") from None
    try:
        yield
    finally:
        lock.release()


def to_resume(folder: Path | None, wanted: Settings, given: Collection[str]) -> SweepFolder:
    """The folder named, else the newest sweep of the options ``given``, or of any where none were.

    Raises:
        ValueError: there is none; says what its newest has else.
    """
    if folder is not None:
        return SweepFolder.open(folder)
    root = wanted.load.results
    sweeps = find_sweeps(root)
    if not sweeps:
        raise ValueError(f"{root} holds no sweep to go on with")
    if not set(given) - set(FREE):
        return SweepFolder.open(sweeps[-1])
    plan = wanted.checked().plan
    alike = [path for path in sweeps if read_sweep(path).get("plan") == plan]
    if not alike:
        resumed_settings(SweepFolder.open(sweeps[-1]), wanted, given)  # says what differs
        raise ValueError(
            f"none of the {len(sweeps)} sweeps in {root} has just these options; to go on with the newest "
            f"say --resume {sweeps[-1]}"
        )
    return SweepFolder.open(alike[-1])


def resumed_settings(kept: SweepFolder, wanted: Settings, given: Collection[str]) -> Settings:
    """The sweep's own settings, but for ``given`` ones that decide no figure.

    Raises:
        ValueError: another of the options given differs from its own.
    """
    try:
        own = Settings.from_json(kept.info["settings"])
    except ValueError as error:
        raise ValueError(f"{kept.path}: {error}; perhaps another version of fgbench began it") from None
    if own.plan != kept.info.get("plan"):
        raise ValueError(
            f"another version of fgbench began the sweep in {kept.path}: its settings are something else here"
        )
    try:
        return own.with_given(wanted, given)
    except ValueError as error:
        raise ValueError(f"{kept.path}: {error}") from None


def unfinished_sweep(settings: Settings) -> Path | None:
    """The newest of the same options that did not end well."""
    for path in reversed(find_sweeps(settings.load.results)):
        try:
            info = read_sweep(path)
        except ValueError:
            continue
        if info.get("plan") == settings.plan and info.get("status") != "complete":
            return path
    return None
