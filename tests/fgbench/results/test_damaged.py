"""One damaged file in one run folder.

Every command that reads the file names the run, leaves it out, and shows the other runs.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import fgbench
from fgbench.cli.main import app
from fgbench.results.table import record_schema

Seen = tuple[list[str], str]
"""The backends shown, and the warnings about the others."""


def run_verb(*argv: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(argv))
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def listed(root: Path) -> Seen:
    out, warned = run_verb("results", "list", "--json", "--results", str(root))
    return sorted(row["backend"] for row in json.loads(out)), warned


def queried(root: Path) -> Seen:
    both = "SELECT backend, avg(first_token) FROM runs JOIN requests USING (run) GROUP BY 1 ORDER BY 1"
    out, warned = run_verb("results", "sql", both, "--json", "--results", str(root))
    return [row["backend"] for row in json.loads(out)], warned


def queried_runs_only(root: Path) -> Seen:
    """This query reads no requests, so only the start and the end of a Parquet file are read."""
    query = "SELECT backend FROM runs ORDER BY backend"
    out, warned = run_verb("results", "sql", query, "--json", "--results", str(root))
    return [row["backend"] for row in json.loads(out)], warned


def compared(root: Path) -> Seen:
    out, warned = run_verb("compare", str(root), "--json", "--no-pictures")
    return sorted(run["label"] for each in json.loads(out)["comparisons"] for run in each["runs"]), warned


def compared_as_newest(root: Path) -> Seen:
    out, warned = run_verb("compare", "--results", str(root), "--json", "--no-pictures")
    return sorted(run["label"] for each in json.loads(out)["comparisons"] for run in each["runs"]), warned


def compared_by_name(root: Path) -> Seen:
    folders = [str(path.parent) for path in sorted(root.glob("*/run.json"))]
    out, warned = run_verb("compare", *folders, "--json", "--no-pictures")
    return sorted(run["label"] for each in json.loads(out)["comparisons"] for run in each["runs"]), warned


def loaded(root: Path) -> Seen:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backends = fgbench.load_runs(root)["backend"].unique().tolist()
    assert all(Path(each.filename) == Path(__file__) for each in caught)
    return sorted(backends), "\n".join(str(each.message) for each in caught)


def loaded_runs(root: Path) -> Seen:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backends = fgbench.runs(root)["backend"].tolist()
    return sorted(backends), "\n".join(str(each.message) for each in caught)


READERS: dict[str, tuple[Callable[[Path], Seen], set[str]]] = {
    "results list": (listed, {"run.json"}),
    "fgbench.runs": (loaded_runs, {"run.json"}),
    "results sql": (queried, {"run.json", "requests.parquet", "requests.jsonl"}),
    "results sql of runs": (queried_runs_only, {"run.json", "requests.parquet", "requests.jsonl"}),
    "fgbench.load_runs": (loaded, {"run.json", "requests.parquet", "requests.jsonl"}),
    "compare FOLDER": (compared, {"run.json", "requests.jsonl"}),
    "compare RUN ...": (compared_by_name, {"run.json", "requests.jsonl"}),
    "compare": (compared_as_newest, {"run.json", "requests.jsonl"}),
}
"""Commands and functions that read runs, with the files that each of them reads."""


def replaced(old: str, new: str) -> Callable[[Path], str]:
    def damage(folder: Path) -> str:
        path = folder / "run.json"
        text, count = re.subn(old, new, path.read_text(), count=1)
        assert count == 1
        path.write_text(text)
        return "run.json"

    return damage


def truncate_json(folder: Path) -> str:
    path = folder / "run.json"
    path.write_bytes(path.read_bytes()[:100])
    return "run.json"


def truncate_parquet(folder: Path) -> str:
    path = folder / "requests.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    return "requests.parquet"


def flip_a_byte_of_a_page(folder: Path) -> str:
    """Damage a page so that it decodes to other numbers; the file's start and end remain intact."""
    path = folder / "requests.parquet"
    place = record_schema().names.index("first_token")
    column = pq.ParquetFile(path).metadata.row_group(0).column(place)
    begin = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[begin + column.total_compressed_size - 2] ^= 0x40
    path.write_bytes(bytes(data))
    return "requests.parquet"


def damage_line(folder: Path) -> str:
    path = folder / "requests.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:20] + b"\n"
    path.write_bytes(b"".join(lines))
    (folder / "requests.parquet").unlink()
    return "requests.jsonl"


def change_type(folder: Path) -> str:
    path = folder / "requests.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"first_token":0.5', b'"first_token":"soon"'))
    (folder / "requests.parquet").unlink()
    return "requests.jsonl"


DAMAGES: dict[str, Callable[[Path], str]] = {
    "run.json is cut off": truncate_json,
    "run.json holds NaN": replaced('"jct": {\n *"count": 4', '"jct": {"count": NaN'),
    "a workload of another type": replaced(r'"workload": \{', '"workload": "x", "_": {'),
    "a rate that is a word": replaced('"rate": 2.0', '"rate": "abc"'),
    "a seed that is a word": replaced('"seed": 0', '"seed": "seven"'),
    "a trim that is not an amount": replaced('"trim": null', '"trim": {"start": "soon"}'),
    "a summary that is a text": replaced(r'"summary": \{', '"summary": "x", "_": {'),
    "a summary without figures": replaced('"requests": 4', '"ask": 4'),
    "a summary with another type": replaced('"mean": 1.0', '"mean": "one"'),
    "the Parquet is cut off": truncate_parquet,
    "one byte of the Parquet is wrong": flip_a_byte_of_a_page,
    "a damaged line": damage_line,
    "a line of another type": change_type,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.slow
def test_a_damaged_run_does_not_hide_the_others(
    tmp_path: Path, write_run: Callable[..., Path], reader: str, damage: str
) -> None:
    for backend in ("a", "b"):
        write_run(tmp_path, backend)
    folder = write_run(tmp_path, "c")
    file = DAMAGES[damage](folder)
    read, files = READERS[reader]
    if reader == "results sql of runs" and damage == "one byte of the Parquet is wrong":
        files = files - {file}
    backends, warned = read(tmp_path)
    if file in files:
        assert backends == ["a", "b"]
        assert f"Left out: {folder / file}" in warned
    else:
        assert backends == ["a", "b", "c"]
        assert "Left out" not in warned


def test_removal_leaves_a_damaged_run_alone(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    killed, folder = write_run(tmp_path, "a", status="running"), write_run(tmp_path, "b")
    truncate_json(folder)
    _, _ = run_verb("results", "rm", "--incomplete", "--yes", "--results", str(tmp_path))
    assert folder.is_dir()
    assert not killed.exists()
