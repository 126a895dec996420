"""Code and pages avoid words that a reader whose English is a second language has to look up or guess."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    *(path for folder in ("fgbench", "fgengine", "bench", "docs") for path in (ROOT / folder).rglob("*.*")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "results/README.md")),
]
INSTEAD = {
    "anew": "again",
    "beside": "next to, compared with",
    "foretold": "predicted",
    "hangs on": "depends on",
    "nobody": "no one, no client",
    "somebody": "another client, another process",
    "to be had": "available",
    "told": "reported, known",
    "whoever": "any client that, the caller",
}


@pytest.mark.parametrize("word", INSTEAD)
def test_a_plainer_word_is_used(word: str) -> None:
    pattern = re.compile(rf"\b{word}\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        if path.suffix in (".py", ".md", ".c", ".h", ".toml")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], f"write instead: {INSTEAD[word]}"


def test_the_readme_is_short_enough_to_be_read_to_its_end() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
