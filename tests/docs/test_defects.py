"""docs/fastserve-defects.md names a test for every row, and the tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)
NODE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_row_names_tests_that_exist() -> None:
    text = (ROOT / "docs/fastserve-defects.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if ROW.match(line)]
    assert [int(ROW.match(row)[1]) for row in rows] == list(range(1, 19))  # type: ignore[index]
    for row in rows:
        named = NODE.findall(row)
        assert named, row
        for file, test in named:
            assert test in functions(ROOT / file), f"{file} has no {test}"
