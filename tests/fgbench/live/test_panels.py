"""Tests of panels at several widths: all lines fit, no figure is lost, control characters are removed."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fgbench.backends.probe import SilentServer
from fgbench.client.state import LoadState
from fgbench.live.layout import Lines, clean
from fgbench.live.load_panel import LoadView
from fgbench.live.meter import Meter
from fgbench.live.watching import Watch
from fgbench.metrics.record import RequestRecord

WIDTHS = [60, 80, 100, 160]
EVIL = "[bold red]x[/]\x1b[2J\x1b]0;title\x07\r\n\u202e\u200b\u9b28\u9b28"
"""Markup, escapes, line ends, a change of the writing direction, zero-width and wide characters."""


def stats(second: int, **values: Any) -> dict[str, Any]:
    return {
        "running": 13,
        "max_batch_size": 16,
        "waiting": 27,
        "swapped": 5,
        "num_device_blocks": 400,
        "free_device_blocks": 50,
        "num_host_blocks": 1000,
        "free_host_blocks": 881,
        "prompt_tokens": 210 * second,
        "generated_tokens": 473 * second,
        "finished": 11 * second,
        "aborted": 2,
        "preemptions": 3 * second,
        "offloaded_blocks": 8 * second,
        "uploaded_blocks": 6 * second,
        "recomputed_tokens": 41 * second,
        "work_steps": 20 * second,
        "model_seconds": 0.6 * second,
        "engine_seconds": 0.1 * second,
        "copy_wait_seconds": 0.25 * second,
        "pressure_seconds": 0.0,
        "under_pressure": False,
        "levels": [
            {"name": f"Q{k + 1}", "requests": n, "quantum": 0.01 * 2**k}
            for k, n in enumerate([4, 0, 31, 9, 0, 1, 0, 0])
        ],
        "policy": "sj-mlfq",
        "model": "tiny",
        "uptime_seconds": float(second),
        "block_bytes": 2**20,
        **values,
    }


def view(meter: Meter | None = None) -> LoadView:
    state = LoadState(200, 100.0, [i * 0.5 for i in range(200)])
    shown = LoadView("fastgen", state, meter)
    for second in range(1, 62):
        state.elapsed = float(second)
        while state.sent < state.due:
            state.leave(0.002)
        state.take(RequestRecord(second, second - 1.0, second - 1.0, 4, 11, 11, second - 0.5, float(second)))
        shown.sample()
    return shown


def watch(second: int = 61, **values: Any) -> Watch:
    answers = iter(stats(k, **values) for k in range(1, second + 1))
    times = iter(float(k) for k in range(1000))
    watched = Watch("http://127.0.0.1:10000", lambda: next(answers), 1.0, now=lambda: next(times))
    for _ in range(second):
        watched.tick()
    return watched


def drawn(panel: RenderableType, width: int, height: int = 50, **console: Any) -> list[str]:
    out = io.StringIO()
    terminal = Console(
        file=out, width=width, height=height, force_terminal=True, color_system=None, **console
    )
    terminal.print(panel)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines), lines
    return lines


def has(lines: list[str], *figures: str) -> None:
    text = "\n".join(lines)
    missing = [figure for figure in figures if figure not in text]
    assert not missing, f"{missing} not in\n{text}"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_load_shows_all_its_figures(width: int) -> None:
    meter = Meter(1.0)
    for second in (60, 61):
        meter.take(stats(second), float(second))
    lines = drawn(view(meter).draw(61.0), width)
    has(lines, "fastgen", "61/200", "30%", "1:01, 2:19 to go")
    has(lines, "sent 123", "done 61", "in flight 62", "rejected 0", "errors 0")
    has(lines, "offered 2/s", "sent 2/s", "answered 1/s", "client lag p50 2", "p99 2")
    has(lines, "mean", "p50", "p99", "last 30 s")
    for label, figure in (
        ("TTFT", "500 ms"),
        ("TPOT", "50 ms"),
        ("JCT  ", "1 s"),
        ("JCT / token", "90.9 ms"),
    ):
        row = next(line for line in lines if label in line)
        assert row.count(figure) >= 2, row  # the means are exact, the quantiles nearly
    has(lines, "62 (max 62)", "11 (max 11)")
    has(lines, "server tiny · sj-mlfq", "13/16", "350/400", "88%", "119/1,000", "12%")
    has(lines, "waiting 27", "offloaded 5", "preemptions 183 (3/s)", "offload 8 MiB/s", "upload 6 MiB/s")
    has(lines, "device idle for copies 25%", "Q1:4  Q3:31  Q4:9  Q6:1")
    assert not any("pressure" in line for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_watched_server_shows_all_its_figures(width: int) -> None:
    lines = drawn(watch().panel(), width)
    has(lines, "http://127.0.0.1:10000 · tiny · sj-mlfq", "up 1:01", "every 1 s", "the last 1:00")
    has(lines, "running 13", "waiting 27", "offloaded 5", "done 671", "aborted 2", "preemptions 183")
    has(lines, "13/16", "350/400  88%", "119/1,000  12%")
    text = "\n".join(lines)
    levels = [int(n) for _, n in re.findall(r"Q(\d) +[\d.]+ m?s\s.*?█*\S*░* +(\d+)", text)]
    assert sorted(levels) == [0, 0, 1, 4, 9, 31]
    has(lines, "Q1  10 ms", "Q6 320 ms")
    for label, figure in (
        ("output tokens/s", "473"),
        ("prompt tokens/s", "210"),
        ("requests done/s", "11"),
        ("step time", "35 ms"),
        ("preemptions/s", "3"),
        ("offload blocks/s", "8 (8 MiB)"),
        ("upload blocks/s", "6 (6 MiB)"),
        ("idle for copies", "25%"),
        ("recomputed tok/s", "41"),
    ):
        row = next(line for line in lines if label in line)
        assert re.search(rf"{label} +{re.escape(figure)} ", row), row


def pressed(seconds: float, now: bool, looks: int) -> tuple[list[str], list[str], str]:
    """Return watch's panel, a load's panel and a line of watch after ``looks`` snapshots, one per second.

    Memory is under pressure in the last ``seconds`` seconds.
    """
    values = [
        stats(second, under_pressure=now, pressure_seconds=max(0.0, seconds - looks + second))
        for second in range(1, looks + 1)
    ]
    meter, answers = Meter(1.0), iter(values)
    watched = Watch("http://127.0.0.1:10000", lambda: next(answers), 1.0)
    for second, value in enumerate(values, 1):
        meter.take(value, float(second))
        watched.tick()
    return drawn(watched.panel(), 80), drawn(view(meter).draw(float(looks)), 80), watched.line()


@pytest.mark.parametrize(
    ("seconds", "now", "looks", "text"),
    [
        (12.0, True, 61, "under pressure: no new request starts (12 s of the last minute)"),
        (3.0, True, 11, "under pressure: no new request starts (3 s of the last 10 s)"),
        (0.0, True, 1, "under pressure: no new request starts"),
        (12.0, False, 61, "pressure has ended (12 s of the last minute)"),
    ],
)
def test_memory_pressure_is_shown(seconds: float, now: bool, looks: int, text: str) -> None:
    panel, load, line = pressed(seconds, now, looks)
    has(panel, text)
    has(load, text)
    assert text in line


def test_without_memory_pressure_there_is_no_line() -> None:
    panel, load, line = pressed(0.0, False, 61)
    assert "pressure" not in "".join(panel) + "".join(load) + line


@pytest.mark.parametrize("width", [1, 10, 25, 40])
def test_panels_fit_narrow_terminals(width: int) -> None:
    drawn(watch().panel(), width)
    drawn(view().draw(61.0), width)


@pytest.mark.parametrize("height", [3, 5, 10, 15, 24])
def test_low_terminals_show_the_most_important_sections(height: int) -> None:
    meter = Meter(1.0)
    meter.take(stats(1), 1.0)
    for panel, first in ((watch().panel(), "running 13"), (view(meter).draw(1.0), "61/200")):
        lines = drawn(panel, 80, height)
        assert len(lines) <= height
        has(lines, first)
    assert len(drawn(view(meter).draw(1.0, height=7), 80, 24)) <= 7


def test_a_low_panel_drops_recomputation_before_levels() -> None:
    lines = drawn(watch().panel(), 70, 20)
    has(lines, "Q3", "output tokens/s", "requests done/s")
    assert not any("recomputed" in line for line in lines)
    has(drawn(watch().panel(), 80, 24), "Q3", "recomputed tok/s")


def test_a_load_and_its_server_fit_80_by_24() -> None:
    meter = Meter(1.0)
    for second in (60, 61):
        meter.take(stats(second, under_pressure=True), float(second))
    has(
        drawn(view(meter).draw(61.0, height=23), 80, 24),
        "JCT / token",
        "in flight  ",
        "host KV",
        "Q3:31",
        "offload 8 MiB/s",
        "upload 6 MiB/s",
        "device idle for copies",
        "under pressure: no new request starts",
    )


@pytest.mark.parametrize("width", [40, 80, 160])
def test_control_characters_from_servers_are_removed(width: int) -> None:
    evil = {"model": EVIL, "policy": EVIL, "levels": [{"name": EVIL, "requests": 3, "quantum": 1.0}]}
    meter = Meter(1.0)
    meter.take(stats(1, **evil), 1.0)
    load = view(meter)
    load.title = EVIL
    load.state.last_error = f"http 500: {EVIL}"
    for panel in (load.draw(1.0), watch(3, **evil).panel()):
        out = io.StringIO()
        Console(file=out, width=width, height=60, force_terminal=True, color_system=None).print(panel)
        assert "[bold red]x[/]" in out.getvalue()
        assert not set(out.getvalue()) & set("\x1b\x07\r\u202e\u200b")


def test_clean() -> None:
    assert clean("a\x1b[31mb\n c\u202e") == "a [31mb c"
    assert clean("x" * 300, 10) == "x" * 9 + "…"
    assert clean("wide 鬨 é") == "wide 鬨 é"


@pytest.mark.parametrize("width", [60, 80])
def test_terminals_without_unicode(width: int) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=out, width=width, height=50, force_terminal=True, color_system=None).print(watch().panel())
    Console(file=out, width=width, height=50, force_terminal=True, color_system=None).print(view().draw(61.0))
    out.seek(0)
    text = out.read()
    assert "350/400  88%" in text
    assert "#####" in text


def test_levels_that_do_not_fit_are_summed() -> None:
    levels = [{"name": f"Q{k + 1}", "requests": 2, "quantum": None} for k in range(30)]
    lines = drawn(watch(3, levels=levels).panel(), 80)
    has(lines, "below Q15", " 30")
    assert not any("Q17" in line for line in lines)


def test_a_policy_without_levels_and_a_server_with_few_statistics() -> None:
    assert not any("levels" in line for line in drawn(watch(3, levels=[]).panel(), 80))
    little = Watch("http://h:1", lambda: {"running": 3, "waiting": 1, "device_used_share": 0.5}, 1.0)
    little.tick()
    lines = drawn(little.panel(), 80)
    has(lines, "running 3", "waiting 1", "device KV", "50%")
    assert not any("host KV" in line or "offload" in line or "None" in line for line in lines)


def test_a_load_before_its_first_answer_and_a_silent_server() -> None:
    state = LoadState(10, 0.0)
    lines = drawn(LoadView("openai", state).draw(0.0), 80)
    has(lines, "0/10  0%  0:00", "offered all at once", "client lag p50 -, p99 -")
    state.workers = 8
    has(drawn(LoadView("openai", state).draw(0.0), 80), "offered 8 at a time")
    meter = Meter(1.0)
    meter.take(stats(1), 1.0)
    has(drawn(view(meter).draw(9.0), 80), "no answer for 0:08")


def test_a_server_that_stopped_answering_and_was_restarted() -> None:
    now = [0.0]
    answers: list[Any] = [
        stats(50),
        stats(51),
        SilentServer("no server answers at http://h:1"),
        stats(1),
        stats(2),
    ]

    def ask() -> Any:
        now[0] += 1.0
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watched = Watch("http://h:1", ask, 1.0, now=lambda: now[0])
    for _ in range(3):
        watched.tick()
    has(drawn(watched.panel(), 80), "no server answers at http://h:1; last answer 0:01 ago", "running 13")
    watched.tick()
    watched.tick()
    lines = drawn(watched.panel(), 80)
    has(lines, "the server was restarted once", "up 0:02")
    assert not any("no server" in line for line in lines)


def test_sections_are_dropped_by_rank() -> None:
    from rich.text import Text

    def sections(width: int) -> list[tuple[int, list[Text]]]:
        return [(0, [Text("first")]), (2, [Text("third")] * 3), (1, [Text("second")])]

    assert "third" not in "".join(drawn(Lines("t", sections, height=5), 40))
    assert "second" in "".join(drawn(Lines("t", sections, height=5), 40))
    assert "third" in "".join(drawn(Lines("t", sections, height=7), 40))


def test_rejected_requests_are_counted_separately() -> None:
    state = LoadState(10, 0.0)
    for index in range(3):
        state.leave(0.0)
        state.take(RequestRecord(index, 0.0, 0.0, 4, 11, rejected="http 429: busy"))
    lines = drawn(LoadView("fastgen", state).draw(0.0), 80)
    has(lines, "sent 3", "done 0", "in flight 0", "rejected 3", "errors 0")
    has(drawn(watch(requests_rejected=41, requests_timed_out=2).panel(), 80), "rejected 41", "timed out 2")
