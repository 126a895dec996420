"""A comparison as LaTeX, and the requests of a run as a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from fgbench.report.chrome_trace import chrome_trace
from fgbench.report.comparison import compare
from fgbench.report.comparison_latex import comparison_latex, escaped
from fgbench.results.run import Run

Make = Callable[..., Run]


def test_latex_has_a_row_for_each_backend_and_load(sweep: list[Run]) -> None:
    (comparison,) = compare(sweep)
    text = comparison_latex(comparison)
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 1 + sum(len(comparison.at(level)) for level in comparison.levels)
    assert {row.count("&") for row in rows} == {rows[0].count("&")}
    assert "0.50x $\\checkmark$" in text
    assert text.count("\\begin{") == text.count("\\end{") == 2


def test_special_characters_are_escaped_in_latex(make_run: Make) -> None:
    assert escaped("50% of a_b & {c} \\ ~ ^ < > # $") == (
        "50\\% of a\\_b \\& \\{c\\} \\textbackslash{} \\textasciitilde{} \\textasciicircum{} "
        "\\textless{} \\textgreater{} \\# \\$"
    )
    (comparison,) = compare([make_run("a_b%"), make_run("fastgen-fcfs")])
    assert "a\\_b\\%" in comparison_latex(comparison)


def test_a_trace_has_the_spans_of_each_request(make_run: Make) -> None:
    run = make_run("fastgen", latency=1.0, account=True)
    failed = replace(run.records[1], first_token=None, last_token=None, error="timeout: none", finished=3.0)
    trace = json.loads(json.dumps(chrome_trace(Run(run.path, run.info, (run.records[0], failed)))))
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(span["name"], span["tid"], span["ts"], span["dur"]) for span in spans] == [
        ("waits", 1, 0, 500_000),
        ("is answered", 1, 500_000, 500_000),
        ("failed", 2, 500_000, 2_500_000),
    ]
    assert spans[1]["args"]["preemptions"] == 2.0
    assert spans[2]["args"] == {"error": "timeout: none"}


def test_latex_has_all_marks_and_explains_them(make_run: Make) -> None:
    runs = [make_run("fastgen-fcfs"), make_run("new", status="interrupted")]
    (comparison,) = compare(runs)
    text = comparison_latex(comparison)
    assert r"new $\triangle$ $\circ$ &" in text
    assert r"\par\footnotesize $\circ$ not a complete run" in text
    assert text.startswith(r"% \usepackage{booktabs,amssymb}")
    assert text.isascii()


def test_a_stream_that_broke_is_no_answer(make_run: Make) -> None:
    run = make_run("a")
    broken = replace(run.records[0], error="protocol: cut", last_token=0.6, finished=0.7)
    spans = [e for e in chrome_trace(replace(run, records=(broken,)))["traceEvents"] if e["ph"] == "X"]
    assert [span["name"] for span in spans] == ["waits", "failed"]
    assert spans[1]["ts"] + spans[1]["dur"] == 700_000
    assert spans[1]["args"] == {"error": "protocol: cut"}
