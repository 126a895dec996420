"""Every row of docs/fastserve-defects.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    line for line in (ROOT / "docs/fastserve-defects.md").read_text().splitlines() if line.startswith("|")
]
NODE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_all_rows_exist_and_each_names_a_test() -> None:
    numbers = [line.split("|")[1].strip() for line in ROWS[2:]]
    assert numbers == [str(number) for number in range(1, 19)]
    assert all(NODE.search(line) for line in ROWS[2:])


def test_every_named_test_exists() -> None:
    named = NODE.findall("\n".join(ROWS))
    assert len(named) == "\n".join(ROWS).count("::")
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}, (
            f"{file}::{name}"
        )
