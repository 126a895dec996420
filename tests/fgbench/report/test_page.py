"""The page of a comparison: its contents, its size, and that no text of a run is executed in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from fgbench.metrics.record import RequestRecord
from fgbench.metrics.slo import parse_slo
from fgbench.report.comparison import compare
from fgbench.report.objectives import Objective
from fgbench.report.page.contents import MAX_REQUESTS, Page, page_of, pauses
from fgbench.report.page.writing import page_html, write_page
from fgbench.results.run import Run

Make = Callable[..., Run]
EVIL = "<script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\">"
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)


def page(runs: list[Run], *slos: str) -> Page:
    comparisons = compare(runs)
    return page_of([(c, [Objective(parse_slo(slo), c) for slo in slos]) for c in comparisons], "A page")


def contents(html: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="contents">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def test_a_page_has_the_figures_of_the_comparison(sweep: list[Run]) -> None:
    (section,) = contents(page_html(page(sweep, "jct<0.8"), "made"))["sections"]
    assert [backend["name"] for backend in section["backends"]]
    columns, rows = section["table"]["columns"], section["table"]["rows"]
    assert columns[:2] == ["rate", "backend"]
    assert all(len(row) == len(columns) for row in rows)
    texts = [cell["text"] for row in rows for cell in row]
    assert any("0.50x ✔" in text for text in texts)
    assert {cell.get("verdict") for row in rows for cell in row} >= {"better"}
    assert section["slos"][0]["slo"] == "jct<0.8"
    line = section["curves"]["jct mean"]["lines"][0]
    assert len(line["x"]) == len(line["y"]) == len(line["low"]) == len(line["above"]) > 1
    assert section["spread"][0]["cdf"]["jct"][0]["y"][-1] == 1.0
    assert section["runs"][0]["scheduled"][0] == 0.0


def test_a_preempted_request_has_its_longest_gaps_as_pauses() -> None:
    times = (1.0, 1.01, 1.02, 2.0, 2.01, 2.02, 2.05, 5.0, 5.01)
    record = RequestRecord(0, 0.0, 0.0, 8, 9, 9, 1.0, 5.01, times, finished=5.01)

    def found(preemptions: float | None) -> list[tuple[float, float]]:
        server = None if preemptions is None else {"preemptions": preemptions}
        return pauses(replace(record, server=server))

    assert found(2) == found(3)[:2] == [(1.02, 2.0), (2.05, 5.0)]
    assert found(1) == [(2.05, 5.0)]
    assert found(0) == found(None) == []
    assert len(found(9)) == 2  # the gap of 30 ms is not clearly longer than a step
    assert pauses(replace(record, token_times=(1.0, 5.0), server={"preemptions": 1.0})) == []


def test_what_the_server_reported_is_drawn(make_run: Make) -> None:
    run = make_run("fastgen")
    samples = [{"at": float(i), "running": 2.0, "preemptions": 3.0 * i} for i in range(2500)]
    found = page_of([(compare([run])[0], [])], "A page", lambda folder: samples if folder == run.path else [])
    server = found.sections[0]["runs"][0]["server"]
    assert set(server["groups"]) == {"requests", "events per second"}
    assert set(server["groups"]["requests"]) == {"running"}
    assert len(server["at"]) == len(server["groups"]["requests"]["running"]) <= 1000
    assert server["groups"]["events per second"]["preemptions"][:2] == [None, 3.0]
    (without,) = page([run]).sections
    assert without["runs"][0]["server"] == {"at": [], "groups": {}}


def test_warnings_come_with_the_page(make_run: Make) -> None:
    (section,) = page(
        [make_run("fastgen-fcfs", "inf"), make_run("fastgen", "inf", status="running")]
    ).sections
    warnings = [note["text"] for note in section["notes"] if note["warns"]]
    assert any(text.startswith("▲ above capacity") for text in warnings)
    assert any(text.startswith("◌ not a complete run") for text in warnings)


def test_no_text_of_a_run_can_end_the_script(make_run: Make) -> None:
    run = make_run(EVIL, settings={EVIL: EVIL, "b": "\u2028</script>"})
    run.info["model"] = EVIL
    records = tuple(replace(one, error=EVIL, user=EVIL) for one in run.records)
    made = page([Run(run.path, run.info, records), make_run("fastgen-fcfs")])
    html = page_html(replace(made, title=EVIL), EVIL)
    assert "<script>document" not in html
    assert "<img src=x" not in html
    assert EVIL in json.dumps(contents(html), ensure_ascii=False).replace('\\"', '"')


def test_a_page_with_ten_thousand_requests_is_below_6_mb(make_run: Make, tmp_path: Path) -> None:
    runs = [
        make_run(name, records=2500, num_prompts=2500, account=True, seed=s) for name in "ab" for s in (0, 1)
    ]
    made = page(runs)
    shown = sum(len(run["scheduled"]) for run in made.sections[0]["runs"])
    assert 5000 <= shown <= MAX_REQUESTS
    assert write_page(made, "made", tmp_path / "page.html") < 6_000_000


def test_more_requests_than_there_is_room_for_are_left_out(make_run: Make) -> None:
    made = page([make_run(name, records=6000, num_prompts=6000) for name in "ab"])
    assert [len(run["scheduled"]) for run in made.sections[0]["runs"]] == [6000]


FRAME = """<!doctype html><iframe id="frame" width="WIDTH" height="900" srcdoc="PAGE"></iframe><script>
const frame = document.getElementById("frame");
const timer = setInterval(() => {
  const page = frame.contentDocument;
  if (page.documentElement.dataset.ready !== "yes") return;
  clearInterval(timer);
  const drawn = [...page.querySelectorAll(".main-svg")].map((one) => one.getBoundingClientRect().right);
  const found = {
    title: page.title,
    page: page.documentElement.scrollWidth,
    drawn: Math.max(...drawn),
    pictures: drawn.length,
    cells: page.querySelectorAll("td").length,
    text: getComputedStyle(page.body).color,
    wide: [...page.querySelectorAll("body *")]
      .filter((one) => one.getBoundingClientRect().right > WIDTH && !one.closest(".scroll, pre, .picture"))
      .map((one) => `${one.tagName}.${one.className}`).slice(0, 5),
    pictureText: page.querySelector(".xtick text").style.fill,
  };
  document.body.append(`FOUND${JSON.stringify(found)}DNUOF`);
}, 100);
</script>"""
"""A page with a frame of a given width, since no window of Chromium is as narrow as a phone. It writes what
the frame shows into its own document."""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("scheme", "colour"), [("0", "rgb(232, 232, 230)"), ("1", "rgb(27, 27, 27)")])
def test_a_browser_draws_the_page(
    sweep: list[Run], make_run: Make, tmp_path: Path, width: int, scheme: str, colour: str
) -> None:
    """At a phone's and a desktop's width, in dark (0) and light colours."""
    evil = make_run(EVIL, settings={"a": EVIL})
    made = page_html(page([*sweep, evil], "jct<0.8"), "made")
    outer = FRAME.replace("WIDTH", str(width)).replace("PAGE", escape(made))
    (tmp_path / "frame.html").write_text(outer, encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"),
            *("--virtual-time-budget=20000", "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}"),
            f"--blink-settings=preferredColorScheme={scheme}",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    (text,) = re.findall(r"FOUND(\{[^<]*\})DNUOF", done.stdout) or [done.stderr[-2000:]]
    found = json.loads(unescape(text))
    assert found["title"] == "A page"  # no text of a run was run
    assert found["page"] <= width, found["wide"]
    assert width * 0.5 < found["drawn"] <= width
    assert found["pictures"] >= 4
    assert found["cells"] > 50
    assert found["text"] == found["pictureText"] == colour
