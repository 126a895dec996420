"""The site in docs/ builds without a warning, needs no other host, and prints commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fgbench.cli.artifact import PROACTIVE, SKIP_JOIN, SPELLINGS
from fgbench.cli.main import VERBS, load_verb

pytestmark = pytest.mark.slow

pytest.importorskip("material", reason="mkdocs-material builds the site")

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
LOADED_FROM = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}
"""Elements that make a browser fetch something, by the attribute with the address."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_in_the_site(site: Path) -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert (site / f"{path.stem}.html").is_file(), path.name
    assert (site / "repository" / "CONTRIBUTING.html").is_file()
    assert (site / "repository" / "CHANGELOG.html").is_file()


def test_the_hook_itself_is_not_in_the_site(site: Path) -> None:
    assert not list(site.rglob("*.py"))


class Fetched(HTMLParser):
    """Collects the addresses that a browser fetches when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADED_FROM.get(tag, ""))
        if address is not None and dict(attrs).get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(address)


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for path in pages:
        parser = Fetched()
        parser.feed(path.read_text(encoding="utf-8"))
        outside = [address for address in parser.addresses if address.startswith(("http", "//"))]
        assert outside == [], path.name


def test_every_link_between_pages_leads_to_a_file(site: Path) -> None:
    for path in site.rglob("*.html"):
        if path.name == "404.html":  # its links start at the root of a host
            continue
        for link in re.findall(r'href="([^"#?]+)', path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link):
                assert (path.parent / link).resolve().exists(), f"{path.name}: {link}"


def commands() -> Iterator[tuple[str, str]]:
    """The calls of fgbench that pages print in blocks of their own, each with its page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            yield from ((page.name, line) for line in block.splitlines() if line.startswith("fgbench "))


@pytest.mark.parametrize(("page", "line"), [pytest.param(*c, id=f"{c[0]}: {c[1]}") for c in commands()])
def test_a_printed_command_has_only_options_that_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[0] not in VERBS or "[OPTIONS]" in words:
        assert words[0] in (*VERBS, "--help", "--version")
        return
    command: Any = load_verb(words.pop(0))
    if hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    flags = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
    artifacts = {spelling for spelling, ours in SPELLINGS.items() if ours in flags}
    known = {*flags, *artifacts, SKIP_JOIN, PROACTIVE, "--help"}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{page}: {line}"
