from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fgbench.metrics.slo import parse_slo
from fgbench.report.comparison import compare
from fgbench.report.comparison_markdown import comparison_markdown
from fgbench.report.objectives import Objective
from fgbench.results.run import Run

Make = Callable[..., Run]


def tables(text: str) -> list[list[list[str]]]:
    """Return each table as rows of cells, split like a Markdown reader does."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_tables_are_well_formed_and_show_the_figures(sweep: list[Run]) -> None:
    (comparison,) = compare(sweep)
    text = comparison_markdown(comparison, [Objective(parse_slo("jct<0.8"), comparison)])
    main, rates, shares, details = tables(text)
    for table in (main, rates, shares, details):
        assert len({len(row) for row in table}) == 1
        assert set("".join(table[1])) <= set("-:")
    assert main[0][:4] == ["rate", "backend", "mean JCT / token", "mean JCT"]
    row = next(row for row in main if row[:2] == ["1 request / s", "ours △"])
    assert re.fullmatch(r"554 ms \[4\d\d–6\d\d ms\] \(0\.50x, 0\.4\d–0\.5\d ✔\)", row[3])
    assert next(row for row in rates if row[0] == "ours")[3] == "better"
    assert ["1 request / s", "fastgen-fcfs △", "0%", "0/s"] in shares
    assert next(row for row in details if row[:2] == ["1 request / s", "ours △"])[2] == "250 ms"
    assert "✔ better" in text


def test_kv_memory_is_in_the_details(make_run: Make, server_stats: dict[str, Any]) -> None:
    (comparison,) = compare([make_run("a", server_stats=server_stats), make_run("b")])
    _, details = tables(comparison_markdown(comparison, []))
    assert details[0][2:] == ["device idle for copies", "under pressure"]
    assert [row[2:] for row in details[2:]] == [["-", "-"], ["45%", "31 s"]]


def test_names_cannot_break_a_table(make_run: Make) -> None:
    (comparison,) = compare([make_run("a|b", settings={"x": 1}), make_run("<b>*c*\nd", settings={})])
    (main,) = tables(comparison_markdown(comparison, []))
    assert len({len(row) for row in main}) == 1
    names = [row[1] for row in main[2:]]
    assert sorted(name.partition(" ")[0] for name in names) == [r"\<b\>\*c\*", r"a\|b"]
