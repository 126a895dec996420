import io
import re
import sys
import threading
import time

import pytest
from rich.console import Console
from rich.text import Text

from fgbench.backends.attached import Attached
from fgbench.backends.backend import Passing
from fgbench.benchmark import execute_run
from fgbench.client.state import LoadState
from fgbench.live import display
from fgbench.live.display import Live, Plain, display_for, progress_line
from fgbench.metrics.record import RequestRecord
from fgbench.spec.load import Load
from fgbench.workload.datasets import Lengths


def answered(i):
    """Return the record of a request with two tokens, after 0.5 s and 0.6 s."""
    return RequestRecord(i, float(i), float(i), 4, 2, 2, i + 0.5, i + 0.6, (), i + 0.6)


def test_plain_progress_lines_have_all_counts():
    lines = []
    state = LoadState(planned=4, last_arrival=3.0, elapsed=2.0, sent=4)
    state.take(answered(0))
    state.take(RequestRecord(2, 0.0, 0.0, 4, 2, rejected="http 429: busy"))
    state.take(RequestRecord(1, 0.0, 0.0, 4, 2, error="http 500: \x1b[31mno"))
    with Plain(lines.append, every=0.01).load("fastgen", state):
        time.sleep(0.1)
    assert len(lines) > 2
    assert lines[-1] == f"fastgen: {progress_line(state)}"
    for words in ("sent 4/4", "done 1", "in flight 1", "rejected 1", "errors 1", "mean latency 0.60 s"):
        assert words in lines[-1]
    assert "300.0 ms/token" in lines[-1]
    assert "0:01 to go; last error: http 500: [31mno" in lines[-1]


def test_plain_writes_passing_lines_seldom(monkeypatch):
    now, lines = [100.0], []
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    shown = Plain(lines.append, every=15.0)
    shown.report("starting")
    for _ in range(40):
        shown.report(Passing("loading \x1b[31mshards"))
        now[0] += 1.0
    assert lines == ["starting", *["  loading [31mshards"] * 2]
    shown.report(Passing(""))
    shown.report(Passing("warming up"))  # another wait, which has just begun
    assert len(lines) == 3


def test_a_terminal_replaces_passing_lines():
    terminal = Terminal()
    shown = display_for(terminal.console)
    shown.report("starting")
    shown.report(Passing("loading [bold]shards"))
    time.sleep(0.2)  # the spinner is drawn 12.5 times a second
    shown.report(Passing("warming up"))
    shown.report("a note")
    shown.report(Passing(""))
    shown.report("ready")
    text = terminal.out.getvalue()
    assert "loading [bold]shards" in text
    assert "warming up" in text
    assert text.index("a note") < text.index("ready")
    assert "warming up" not in text[text.rindex("ready") :]
    for _ in range(100):  # rich's thread ends within one interval of its drawing
        if not any(type(thread).__name__ == "_RefreshThread" for thread in threading.enumerate()):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the spinner's thread still runs")


class Terminal:
    """A console whose size can be changed, and its output."""

    def __init__(self, width=100, height=40):
        self.out = io.StringIO()
        self.console = Console(file=self.out, force_terminal=True, width=width, height=height)

    def last_frame(self, title):
        return self.out.getvalue().rpartition(title)[2]


def test_a_terminal_shows_a_panel(monkeypatch):
    monkeypatch.setattr(display, "FRAME_SECONDS", 0.01)
    terminal = Terminal()
    shown = display_for(terminal.console)
    assert isinstance(shown, Live)
    state = LoadState(planned=4, last_arrival=3.0, elapsed=62.0, sent=4)
    with shown.load("fastgen-fcfs", state):
        for i in range(3):
            state.take(answered(i))
    frame = terminal.last_frame("fastgen-fcfs")
    for words in ("3/4", "75%", "1:02", "TTFT", "500 ms", "300 ms"):
        assert words in frame
    assert isinstance(display_for(Console(file=io.StringIO())), Plain)
    assert isinstance(
        display_for(Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})), Plain
    )


def test_the_panel_has_a_header_and_adapts_to_a_new_size(monkeypatch):
    monkeypatch.setattr(display, "FRAME_SECONDS", 0.01)
    terminal = Terminal(80, 24)
    frames = []

    def header():
        frames.append(terminal.console.size)
        if len(frames) == 3:
            terminal.console.size = (50, 12)
        return Text(f"point {len(frames)} of 12")

    with Live(terminal.console, header).load("fastgen", LoadState(planned=4, last_arrival=3.0)):
        deadline = time.monotonic() + 5
        while len(frames) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert f"point {len(frames)} of 12" in terminal.out.getvalue()
    before, _, after = terminal.out.getvalue().partition("\x1b[2J")
    assert "point 3 of 12" in before
    widths = [len(line) for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", after).splitlines()]
    assert max(widths) <= 50
    bottom = after.rpartition("point")[2]
    assert bottom.count("\n") + 1 <= 12


def test_an_error_while_drawing_does_not_stop_the_measurement(monkeypatch):
    hooked = []
    monkeypatch.setattr(threading, "excepthook", hooked.append)
    interval = sys.getswitchinterval()
    with Live(Terminal().console, header=lambda: 1 / 0).load("fastgen", LoadState(4, 3.0)):
        assert sys.getswitchinterval() < interval
    assert hooked[0].exc_type is ZeroDivisionError
    assert sys.getswitchinterval() == interval


@pytest.mark.parametrize("is_fastgen", [True, False])
@pytest.mark.slow
def test_the_panel_shows_the_stats_of_fastgen_servers_only(fake_server, tmp_path, monkeypatch, is_fastgen):
    monkeypatch.setattr(display, "FRAME_SECONDS", 0.02)
    monkeypatch.setattr(display, "STATS_SECONDS", 0.05)
    if is_fastgen:
        fake_server.stats = {
            "work_steps": 3,
            "num_device_blocks": 40,
            "free_device_blocks": 10,
            "policy": "lifo",
        }
    fake_server.gap = 0.05
    terminal = Terminal()
    execute_run(
        Attached(fake_server.url),
        Lengths("tiny", ((8, 10),)),
        Load(rate=50.0, num_prompts=5, num_warmup=0),
        results=tmp_path,
        display=Live(terminal.console),
    )
    assert ("server lifo" in terminal.last_frame("5/5")) == is_fastgen
    assert ("30/40" in terminal.last_frame("5/5")) == is_fastgen
    if is_fastgen:
        assert 3 < fake_server.asked < 40  # before and after the load, and every 0.05 s of half a second
    else:
        assert fake_server.asked == 3  # for other requests, whether it is a fastgen server, and for samples
