"""docs/cli.md is made from the commands, and has all of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgbench.cli.artifact import SPELLINGS
from fgbench.cli.main import VERBS, load_verb
from fgbench.cli.page import page

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def commands() -> Iterator[tuple[str, Any]]:
    for verb in VERBS:
        loaded = load_verb(verb)
        inner = getattr(loaded, "commands", None)
        if inner is None:
            yield verb, loaded
        else:
            yield from ((f"{verb} {name}", command) for name, command in inner.items())


def test_the_page_is_made_from_the_commands() -> None:
    """If this fails, run ``make docs``: it writes the page again."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("columns", ["40", "300"])
def test_the_page_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    expected = page()
    monkeypatch.setenv("COLUMNS", columns)
    assert page() == expected


def test_every_command_and_option_is_on_the_page() -> None:
    text = page()
    for name, command in commands():
        assert f"\nfgbench {name} [OPTIONS]" in text
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert f"| `{parameter.opts[0]}`" in text, f"{name} {parameter.opts[0]}"


def test_every_link_leads_to_a_heading() -> None:
    text = page()
    headings = {line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#")}
    linked = {part.partition("](")[0] for part in text.split("the same as in [")[1:]}
    assert linked
    assert linked <= headings


def test_bounds_units_and_choices_are_shown() -> None:
    text = page()
    assert "| `--max-batch-size` | integer (requests) | `16` | at least 1, at most 2^16 |" in text
    assert "| `--request-timeout` | number (seconds) | `3600` | above 0, finite |" in text
    assert "| `--device` | word | `auto` | `auto`, `cpu`, `cuda` |" in text
    assert "| `--port` | integer | `10000` | at least 0, at most 65535 |" in text


def test_the_artifacts_spellings_are_not_on_the_page() -> None:
    own = {flag for _, command in commands() for one in command.params for flag in one.opts[:1]}
    for spelling in set(SPELLINGS) - own:
        assert f"`{spelling}`" not in page()
