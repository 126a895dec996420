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
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

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
"""Timeout of all resolutions. For each of them, pip reads a hundred packages."""
PIP_INSTALL = (
    "install",
    "--disable-pip-version-check",
    "--dry-run",
    "--ignore-installed",
    "--use-feature=fast-deps",
    "--only-binary=:all:",
    "--target=unused",
)
PROGRESS = re.compile(r" *(Collecting|Downloading|Obtaining|Using|Processing|Looking)|WARNING")

PIP_AS_PYTHONS = """
import contextlib, functools, io, json, sys
from pip._vendor.packaging import markers
from pip._internal.cli.main import main
from pip._internal.index.collector import LinkCollector
from pip._internal.operations import prepare

jobs, pins = json.load(sys.stdin)
fetch = LinkCollector.fetch_response
pages = {}
def fetch_once(collector, location, **names):
    if location.url not in pages:
        page = pages[location.url] = fetch(collector, location, **names)
        versions = pins.get(location.url.rstrip("/").rpartition("/")[2])
        if versions and page is not None and page.content_type.endswith("+json"):
            content = json.loads(page.content)
            content["files"] = [
                file for file in content["files"] if any(one in file["filename"] for one in versions)
            ]
            object.__setattr__(page, "content", json.dumps(content).encode())  # the class is frozen
    return pages[location.url]
LinkCollector.fetch_response = fetch_once
prepare.dist_from_wheel_url = functools.cache(prepare.dist_from_wheel_url)

ours = markers.default_environment()
done = []
for python, arguments in jobs:
    theirs = {**ours, "python_version": python, "python_full_version": f"{python}.1"}
    markers.default_environment = functools.partial(dict, theirs)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = main(arguments)
    done.append((status, out.getvalue()))
json.dump(done, sys.stdout)
"""
"""Runs pip several times, each time as if on another Python. With only --python-version, pip selects files
for that Python, but evaluates `; python_version < "3.11"` for the Python that it runs on.

All runs share one process, which reads each page of the index and the metadata of each wheel once. From the
page of a pinned package, pip gets only files of the pinned versions: it would reject the others anyway."""

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


@dataclass(frozen=True)
class Resolution:
    """A resolution that pip should make: ``pip install`` with these arguments on this Python."""

    python: str
    arguments: Sequence[str]


Found: TypeAlias = "dict[str, Any]"
"""Metadata of each package that pip would install, by the package's normalized name."""


def resolve(wanted: Sequence[Resolution]) -> list[Found | Conflict]:
    """Return what pip would install for each resolution, or why it finds no solution.

    Nothing is installed, and only the metadata of wheels is read.
    """
    with tempfile.TemporaryDirectory() as folder:
        reports = [Path(folder) / f"{number}.json" for number in range(len(wanted))]
        jobs = [
            (
                one.python,
                [*PIP_INSTALL, f"--report={report}", f"--python-version={one.python}", *one.arguments],
            )
            for one, report in zip(wanted, reports, strict=True)
        ]
        done = subprocess.run(
            [sys.executable, "-c", PIP_AS_PYTHONS],
            input=json.dumps([jobs, pins()]),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        found: list[Found | Conflict] = []
        for one, report, (status, output) in zip(wanted, reports, json.loads(done.stdout), strict=True):
            if status != 0:
                lines = [line for line in output.splitlines() if not PROGRESS.match(line)]
                found.append(Conflict("\n".join([f"pip for Python {one.python}:", *lines])))
            else:
                packages = json.loads(report.read_text())["install"]
                found.append({_normal(item["metadata"]["name"]): item["metadata"] for item in packages})
    return found


def _found(result: Found | Conflict) -> Found:
    if isinstance(result, Conflict):
        raise result
    return result


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


def pins() -> dict[str, list[str]]:
    """Return the pinned versions of each package in constraints.txt, by its normalized name."""
    found: dict[str, list[str]] = {}
    lines = (ROOT / "constraints.txt").read_text()
    for name, version in re.findall(r"^([\w.-]+)==([\w.!-]+)", lines, re.MULTILINE):
        found.setdefault(_normal(name), []).append(version)
    return found


@pytest.fixture(scope="module")
def index() -> None:
    """Skip the tests if pip reaches no package index. In continuous integration, that is an error instead."""
    try:
        _found(*resolve([Resolution("3.12", ["iniconfig", "--no-deps", "--retries=1", "--timeout=10"])]))
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
    ordinary = _found(*resolve([Resolution("3.12", [f"torch==={version}", "--no-deps"])]))["torch"]
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
def resolutions(cpu_wheels: Path) -> dict[tuple[str, str], Found | Conflict]:
    """Return the result of each resolution, by the Python and the build of torch."""
    combinations = list(product(PYTHONS, (ORDINARY, CPU)))
    # Three equal signs compare the text, so that pip does not accept the other build.
    wanted = [
        Resolution(
            python,
            [
                *our_requirements(),
                f"torch==={torch_pin()}{build}",
                "--constraint=constraints.txt",
                f"--find-links={cpu_wheels}",
            ],
        )
        for python, build in combinations
    ]
    return dict(zip(combinations, resolve(wanted), strict=True))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("build", [ORDINARY, CPU], ids=["ordinary", "cpu"])
@pytest.mark.slow
def test_the_pins_are_compatible(
    resolutions: dict[tuple[str, str], Found | Conflict], python: str, build: str
) -> None:
    found = _found(resolutions[python, build])
    assert found["torch"]["version"] == torch_pin() + build
    assert any(need.startswith("triton==") for need in found["torch"]["requires_dist"]) == (build == ORDINARY)
    cuda = {name for name in found if name.startswith(("cuda-", "nvidia-"))}  # torch itself pins these
    assert set(found) - cuda - set(pins()) == set()
    assert bool(cuda) == (build == ORDINARY)


def test_every_supported_python_is_tried() -> None:
    """The lowest version in ``PYTHONS`` is the one in pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["requires-python"] == f">={PYTHONS[0]}"
