"""A wheel must contain some files that are not Python; an installed fgbench needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_contains_the_data_files(tmp_path: Path) -> None:
    build = [
        "build",
        "--build-base",
        str(tmp_path / "base"),
        "build_py",
        "--build-lib",
        str(tmp_path / "lib"),
    ]
    egg = ["egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *egg, *build], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lib = tmp_path / "lib"
    assert (lib / "fgbench" / "datasets" / "sharegpt-lengths.csv.gz").is_file()
    assert all((lib / package / "py.typed").is_file() for package in ("fgbench", "fgengine"))
    kernels = {
        path.name for path in (ROOT / "fgengine" / "ops" / "cpu").iterdir() if path.suffix in (".c", ".h")
    }
    assert kernels <= {path.name for path in (lib / "fgengine" / "ops" / "cpu").iterdir()}
