"""A sweep's folder: finding it, refusing others, and locking it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fgbench.spec.load import Load
from fgbench.sweeping.folder import SWEEP_FILE, VERSION, SweepFolder, find_sweeps, read_sweep
from fgbench.sweeping.plan import SweepPlan

PLAN = SweepPlan({"a": {"name": "a"}}, Load(), {0: "w"})


def test_folders_are_found_oldest_first(tmp_path: Path) -> None:
    sweeps = [SweepFolder.create(tmp_path, {"seeds": n}, "plan", PLAN).path for n in range(3)]
    (tmp_path / "20261124-081303_fastgen_x").mkdir()
    assert set(find_sweeps(tmp_path)) == set(sweeps)
    assert find_sweeps(tmp_path / "absent") == []
    assert SweepFolder.open(sweeps[2]).info["settings"] == {"seeds": 2}
    assert sweeps[0].name.endswith("_sweep")


def test_points_are_listed_once(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, {}, "plan", PLAN)
    points = list(PLAN.grid((1.0, 2.0), (0,)))
    folder.add(points[:1], 0.01)
    folder.mark(points[0], "complete", Path("x"))
    folder.add(points, 0.01)
    assert [entry["status"] for entry in read_sweep(folder.path)["points"]] == ["complete", "pending"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a sweep's folder"),
        ("{", "is damaged"),
        ("[]", "has no version"),
        (json.dumps({"version": VERSION + 1}), "written by a newer fgbench"),
        (json.dumps({"version": VERSION, "points": []}), "lacks its settings"),
    ],
)
def test_a_folder_without_a_valid_sweep_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / SWEEP_FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        SweepFolder.open(tmp_path)


@pytest.mark.slow
def test_only_one_process_at_a_time_runs_a_sweep(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, {}, "plan", PLAN)
    code = (
        "import sys; from pathlib import Path; from fgbench.sweeping.folder import SweepFolder\n"
        "with SweepFolder.open(Path(sys.argv[1])).at_work(): print('at work')"
    )

    def other() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(folder.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with folder.at_work():
        assert read_sweep(folder.path)["status"] == "running"
        assert "another process is running the sweep" in other().stderr
    assert other().stdout == "at work\n"


def test_sweep_json_has_the_final_status(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, {}, "plan", PLAN)

    def work(error: BaseException) -> None:
        with folder.at_work():
            raise error

    for error, status in ((KeyboardInterrupt(), "interrupted"), (OSError("disk full"), "failed")):
        with pytest.raises(type(error)):
            work(error)
        assert read_sweep(folder.path)["status"] == status
    for code, status in ((0, "complete"), (4, "complete"), (1, "failed"), (3, "failed")):
        folder.finish(code)
        assert read_sweep(folder.path)["status"] == status
