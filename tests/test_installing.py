"""pip can install the versions in constraints.txt on every supported Python, with both builds of torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ORDINARY, CPU = "", "+cpu"
"""Local versions of torch's two builds: PyPI's, which needs the CUDA libraries, and the CPU build."""
SECONDS = 1000
"""Timeout of one resolution. pip reads a hundred packages, and several resolutions run at the same time."""
AT_ONCE = 4
PROGRESS = re.compile(r" *(Collecting|Downloading|Obtaining|Using|Processing|Looking)|WARNING")

PIP_AS_PYTHON = """
import sys
from pip._vendor.packaging import markers

python = sys.argv.pop(1)
ours = markers.default_environment()
theirs = {**ours, "python_version": python, "python_full_version": f"{python}.1"}
markers.default_environment = lambda: dict(theirs)

from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""Runs pip as if on another Python. With only --python-version, pip selects files for that Python, but
evaluates `; python_version < "3.11"` for the Python that it runs on."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("installing"),
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or os.uname().machine != "x86_64",
        reason="both builds of torch exist for Linux on x86-64 only",
    ),
    pytest.mark.timeout(SECONDS + 100),
]


class Conflict(AssertionError):
    """pip found no compatible versions, or no file of a version."""


def resolve(python: str, requirements: Sequence[str], *options: str) -> dict[str, Any]:
    """Return the metadata of each package that pip would install, by the package's normalized name.

    Nothing is installed, and only the metadata of wheels is read.

    Raises:
        Conflict: pip finds no solution.
    """
    pip = [sys.executable, "-c", PIP_AS_PYTHON, python, "install", "--disable-pip-version-check"]
    metadata = ["--dry-run", "--ignore-installed", "--use-feature=fast-deps"]
    files = [f"--python-version={python}", "--only-binary=:all:", "--target=unused"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [*pip, *metadata, f"--report={report}", *files, *options, *requirements],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if done.returncode != 0:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if not PROGRESS.match(line)]
            raise Conflict("\n".join([f"pip for Python {python}:", *lines]))
        found = json.loads(report.read_text())["install"]
    return {_normal(item["metadata"]["name"]): item["metadata"] for item in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def our_requirements() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for names in extras.values() for one in names)]
    return [one for one in wanted if not one.startswith("fgbench[")]


def torch_pin() -> str:
    (line,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(line)


@pytest.fixture(scope="module")
def index() -> None:
    """Skip the tests if pip reaches no package index. In continuous integration, that is an error instead."""
    try:
        resolve("3.12", ["iniconfig"], "--no-deps", "--retries", "1", "--timeout", "10")
    except Conflict as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"pip reaches no package index, so constraints.txt is not resolved: {error}")


@pytest.fixture(scope="module")
def cpu_wheels(index: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an empty wheel that has the name and the metadata of torch's CPU build.

    So the tests need only pip's usual index. The metadata of the CPU build are those of the ordinary build,
    without the packages that are needed only on Linux: CUDA and triton.
    """
    version = torch_pin()
    ordinary = resolve("3.12", [f"torch==={version}"], "--no-deps")["torch"]
    needs = [need for need in ordinary["requires_dist"] if 'platform_system == "Linux"' not in need]
    assert len(needs) < len(ordinary["requires_dist"])
    folder = tmp_path_factory.mktemp("wheels")
    info = f"torch-{version}{CPU}.dist-info"
    fields = [f"Requires-Dist: {need}" for need in needs]
    metadata = ["Metadata-Version: 2.1", "Name: torch", f"Version: {version}{CPU}", *fields, ""]
    wheel = ["Wheel-Version: 1.0", "Generator: test", "Root-Is-Purelib: true", "Tag: py3-none-any", ""]
    with zipfile.ZipFile(folder / f"torch-{version}{CPU}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", "\n".join(metadata))
        file.writestr(f"{info}/WHEEL", "\n".join(wheel))
        file.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def resolutions(cpu_wheels: Path) -> dict[tuple[str, str], Future[dict[str, Any]]]:
    """Return all resolutions. They run at the same time, since pip mostly waits for the network."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return {
            (python, build): threads.submit(
                resolve,
                python,
                # Three equal signs compare the text, so that pip does not accept the other build.
                [*our_requirements(), f"torch==={torch_pin()}{build}"],
                "--constraint=constraints.txt",
                f"--find-links={cpu_wheels}",
            )
            for build in (ORDINARY, CPU)
            for python in PYTHONS
        }


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("build", [ORDINARY, CPU], ids=["ordinary", "cpu"])
@pytest.mark.slow
def test_the_pins_are_compatible(
    resolutions: dict[tuple[str, str], Future[dict[str, Any]]], python: str, build: str
) -> None:
    found = resolutions[python, build].result()
    assert found["torch"]["version"] == torch_pin() + build
    assert any(need.startswith("triton==") for need in found["torch"]["requires_dist"]) == (build == ORDINARY)
    pinned = {
        _normal(name)
        for name in re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    }
    cuda = {name for name in found if name.startswith(("cuda-", "nvidia-"))}  # torch itself pins these
    assert set(found) - cuda - pinned == set()
    assert bool(cuda) == (build == ORDINARY)


def test_every_supported_python_is_tried() -> None:
    """The lowest version in ``PYTHONS`` is the one in pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["requires-python"] == f">={PYTHONS[0]}"
