"""Writes the page of a comparison as one HTML file, with the library that draws it."""

from __future__ import annotations

import html
import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from fgbench.report.page.contents import Page, definitions
from fgengine.extras import require_package
from fgengine.files import replacing


def page_html(page: Page, made: str) -> str:
    """Return the page as HTML. ``made``: a line on when and with what it was made.

    Texts of runs are in JSON, without ``<``, so none of them can end the script or start another. The page's
    own script sets them as text. The page's policy forbids all connections.
    """
    require_package("plotly", "the report")
    from plotly.offline import get_plotlyjs

    files = resources.files("fgbench.report.page")
    contents = {**page.to_json(), "made": made, "definitions": definitions()}
    return Template((files / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(page.title),
        style=(files / "page.css").read_text(encoding="utf-8"),
        contents=_json(contents),
        plotly=get_plotlyjs(),
        script=(files / "page.js").read_text(encoding="utf-8"),
    )


def write_page(page: Page, made: str, path: Path) -> int:
    """Write the page to a file; return its size in bytes.

    write_page(page_of(judged, "Two policies"), "made today", Path("report.html"))
    """
    text = page_html(page, made)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path.stat().st_size


def _json(value: Any) -> str:
    """Return JSON that may stand in a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
