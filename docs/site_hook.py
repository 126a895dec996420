"""Adds files from outside docs/ to the site, and points links at them.

Pages link to such files by their paths in the repository (``../results/README.md``), so the links also work
where the repository is browsed. In the site these files are under ``repository/``.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS, REPOSITORY = "docs", "repository"
ADDED = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "datasets/README.md",
    "examples/published_runs.ipynb",
    "results/README.md",
    "results/gpu/README.md",
    "results/reference/README.md",
    "results/reference/paper/fig11-sharegpt.png",
    "results/reference/smollm2-cpu/latency.png",
    "results/reference/smollm2-cpu-vllm/latency.png",
    "results/reference/smollm2-cpu-sweep/tables.md",
)
"""Files from outside docs/ that pages link to. Files that these link to must be here too."""
LINK = re.compile(r"\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the files of ``ADDED``."""
    for path in ADDED:
        files.append(File.generated(config, f"{REPOSITORY}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites links between docs/ and the rest of the repository."""
    here = page.file.src_uri
    source = in_repository(here)

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))
        link = posixpath.relpath(in_site(target), posixpath.dirname(here) or ".")
        return f"]({link}{match['anchor'] or ''})"

    return LINK.sub(rewritten, markdown)


def in_repository(uri: str) -> str:
    """Return the path in the repository of a file of the site."""
    inside = uri.removeprefix(f"{REPOSITORY}/")
    return inside if inside != uri else f"{DOCS}/{uri}"


def in_site(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    inside = path.removeprefix(f"{DOCS}/")
    return inside if inside != path else f"{REPOSITORY}/{path}"
