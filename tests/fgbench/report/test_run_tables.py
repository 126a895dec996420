from __future__ import annotations

import io
import math

from rich.console import Console

from fgbench.metrics.accounts import MemoryAccount
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.report.run_tables import summary_table
from fgengine.units import number, percent, seconds, size


def test_values_are_shown_with_units() -> None:
    assert [seconds(v) for v in (None, 0.0, 12e-6, 0.0123, 0.5, 1.234, 431.7)] == [
        "-",
        "0 s",
        "12 µs",
        "12.3 ms",
        "500 ms",
        "1.23 s",
        "432 s",
    ]
    assert [number(v) for v in (None, 2.5, 123.4, 12345.6, math.inf)] == [
        "-",
        "2.5",
        "123",
        "12,346",
        "all at once",
    ]
    assert [percent(v) for v in (None, 0.0, 0.0002, 0.0456, 0.456, 1.0)] == [
        "-",
        "0%",
        "<0.1%",
        "4.6%",
        "46%",
        "100%",
    ]
    assert [size(v) for v in (10, 2048, 1020 * 1024, 3 * 1024**3)] == ["10 B", "2 KiB", "1,020 KiB", "3 GiB"]


def test_the_table_of_a_run_shows_figures_and_failures() -> None:
    good = RequestRecord(
        0,
        0.0,
        0.0,
        8,
        3,
        3,
        1.0,
        2.0,
        (1.0, 1.5, 2.0),
        finished=2.0,
        server={"preemptions": 3.0, "bytes_moved": 2048.0, "queued": 0.25},
    )
    bad = RequestRecord(1, 1.0, 1.0, 8, 3, error="http 500: the engine stopped")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary_table("fastgen at 1/s", summarize([good, bad], offered_rate=1.0)))
    text = console.export_text()
    for expected in ("fastgen at 1/s", "667 ms", "1 of 2 answered", "1 x http 500", "3 preemptions", "2 KiB"):
        assert expected in text
    assert "▲" not in text
    assert "△ it is not known whether the load was above capacity (fewer than 20 streamed answers)" in text
    assert "KV memory" not in text


def test_the_table_of_a_run_shows_kv_memory() -> None:
    def shown(memory: MemoryAccount) -> str:
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(summary_table("t", summarize([], offered_rate=1.0), memory))
        (line,) = (line for line in console.export_text().splitlines() if "KV memory" in line)
        return line.partition("KV memory")[2].strip()

    assert shown(MemoryAccount(120.0, 0.0, 0.0)) == (
        "never under pressure; device idle for copies 0% of the time"
    )
    assert shown(MemoryAccount(120.0, 98.0, 54.0)) == (
        "under pressure for 98 s of 120 s (nothing new started); device idle for copies 45% of the time"
    )
    assert shown(MemoryAccount(120.0, 0.0, 0.5, replicas=8)).startswith("mean of 8 replicas: never under")


def test_the_table_of_a_run_shows_rejections_and_what_to_do() -> None:
    good = RequestRecord(0, 0.0, 0.0, 8, 3, 3, 1.0, 2.0, (1.0, 1.5, 2.0), finished=2.0)
    rejected = RequestRecord(1, 1.0, 1.0, 8, 3, finished=1.1, rejected="http 429: the queue is full")
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(summary_table("a", summarize([good] * 3 + [rejected], offered_rate=1.0)))
    text = console.export_text()
    assert "3 of 4 answered in full, 25% rejected" in text
    assert "failed" not in text
    assert "1 of 4 requests were rejected (1 x http 429)" in text
    assert "--max-queue 0" in text
    console.print(summary_table("b", summarize([good], offered_rate=1.0)))
    assert "1 of 1 answered in full, 0% rejected" in console.export_text()


def test_shares_are_shown_as_percentages() -> None:
    shares = (0.0, 0.0001, 0.004, 0.05, 0.0996, 0.25, 1.0)
    assert list(map(percent, shares)) == ["0%", "<0.1%", "0.4%", "5.0%", "10%", "25%", "100%"]
