"""MMLU as its authors pack it: a folder with ``test/<subject>_test.csv``, no header, the answer last."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDING = "_test.csv"


def is_mmlu_folder(path: Path) -> bool:
    return path.is_dir() and any((path / "test").glob(f"*{ENDING}"))


def mmlu_folder_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Every question as ``{"subject", "question", "choices", "answer"}``, subjects in alphabetical order.

    Raises ValueError where there is no such file or one is not a table in UTF-8.
    """
    files = sorted((folder / "test").glob(f"*{ENDING}"))
    if not files:
        raise ValueError(f"{folder} is not MMLU's folder: it has no test/<subject>{ENDING}")
    for path in files:
        subject = path.name.removesuffix(ENDING)
        for question, *choices, answer in _rows(path):
            yield {"subject": subject, "question": question, "choices": choices, "answer": answer.strip()}


def _rows(path: Path) -> list[list[str]]:
    """Of at least two fields."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file) if len(row) > 1]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table in UTF-8: {error}") from None
