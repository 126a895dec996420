"""Live progress: a panel on a terminal, plain lines elsewhere, nothing where nobody looks."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fgbench.backends.backend import Display, SimulationProgress
from fgbench.backends.probe import read_stats
from fgbench.client.state import LoadState
from fgengine.units import clock

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from fgbench.live.load_panel import LoadView

FRAME_SECONDS = 0.5
SAMPLE_SECONDS = 1.0
"""Between two points of what is drawn over time."""
STATS_SECONDS = 1.0
"""Between two questions to the server."""
SWITCH_SECONDS = 0.0005
LINE_SECONDS = 15.0
PROGRESS_EVERY = 100
"""Requests of a simulation between two looks at the clock."""


class Quiet:
    def report(self, line: str) -> None:
        pass

    def load(
        self, title: str, state: LoadState, stats_url: str | None = None
    ) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def simulation(self, title: str, total: int) -> contextlib.AbstractContextManager[SimulationProgress]:
        return contextlib.nullcontext(lambda ended, seconds: None)


class Plain:
    """A line every few seconds: for files, pipes and CI."""

    def __init__(self, write: Callable[[str], None], every: float = LINE_SECONDS) -> None:
        self._write = write
        self._every = every

    def report(self, line: str) -> None:
        self._write(line)

    @contextlib.contextmanager
    def load(self, title: str, state: LoadState, stats_url: str | None = None) -> Iterator[None]:
        ended = threading.Event()

        def write_lines() -> None:
            while not ended.wait(self._every):
                self._write(f"{title}: {progress_line(state)}")

        thread = threading.Thread(target=write_lines, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._write(f"{title}: {progress_line(state)}")

    @contextlib.contextmanager
    def simulation(self, title: str, total: int) -> Iterator[SimulationProgress]:
        last, written = (0, 0.0), time.monotonic()

        def show(ended: int, seconds: float) -> None:
            nonlocal last, written
            last = ended, seconds
            if ended % PROGRESS_EVERY == 0 and time.monotonic() - written >= self._every:
                written = time.monotonic()
                self._write(simulated_line(title, total, *last))

        yield show
        self._write(simulated_line(title, total, *last))


class Live:
    """A panel, redrawn twice a second in a thread of its own. The thread also asks our servers for figures.

    While it is shown, threads take turns more often than Python's 5 ms. A frame takes about 2 ms, and the
    load's loop, which stamps the times that count, comes to its turn in the middle of one: while frames were
    drawn without a pause, a sleep of 1 ms overslept by 0.8 ms (median) instead of 3.2. Measured by
    ``bench/display.py``: with and without the panel the client's lag differs as from round to round.
    """

    def __init__(self, console: Console, header: Callable[[], RenderableType] | None = None) -> None:
        """``header``: drawn above the panel, called for each frame, in the thread that draws."""
        self._console = console
        self._header = header

    def report(self, line: str) -> None:
        from fgbench.live.layout import clean

        self._console.print(clean(line), style="dim", highlight=False, markup=False)

    @contextlib.contextmanager
    def load(self, title: str, state: LoadState, stats_url: str | None = None) -> Iterator[None]:
        from fgbench.live.load_panel import LoadView
        from fgbench.live.meter import Poller

        poller = None
        if stats_url is not None:
            poller = Poller(lambda: read_stats(stats_url), STATS_SECONDS)
            poller.start()
        view = LoadView(title, state, poller.meter if poller else None)
        ended = threading.Event()
        thread = threading.Thread(target=self._draw, args=(view, ended), name="display", daemon=True)
        turns = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        thread.start()
        try:
            yield
        finally:
            if poller is not None:
                poller.stop()
            ended.set()
            thread.join()
            sys.setswitchinterval(turns)

    @contextlib.contextmanager
    def simulation(self, title: str, total: int) -> Iterator[SimulationProgress]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[simulated]} simulated"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Bars(*columns, console=self._console) as bars:
            task = bars.add_task(title, total=total, simulated=clock(0.0))

            def show(ended: int, seconds: float) -> None:
                if ended % PROGRESS_EVERY == 0 or ended == total:
                    bars.update(task, completed=ended, simulated=clock(seconds))

            yield show

    def _draw(self, view: LoadView, ended: threading.Event) -> None:
        """Until ``ended``, and once more. What goes wrong here is no reason to stop a measurement."""
        from rich.live import Live as RichLive

        size, sampled = self._console.size, time.monotonic()
        with RichLive(console=self._console, auto_refresh=False) as live:
            last = False
            while not last:
                last = ended.wait(FRAME_SECONDS)
                now = time.monotonic()
                if last or now - sampled >= SAMPLE_SECONDS:
                    sampled = now
                    view.sample()
                if self._console.size != size:
                    size = self._console.size
                    self._console.clear()  # what was drawn for the old width lies about in pieces
                live.update(self._frame(view, now), refresh=True)

    def _frame(self, view: LoadView, now: float) -> RenderableType:
        from rich.console import Group

        height = self._console.size.height
        if self._header is None:
            return view.draw(now, height - 1)
        header = self._header()
        above = len(self._console.render_lines(header, pad=False))
        return Group(header, view.draw(now, height - 1 - above))


def display_for(console: Console, header: Callable[[], RenderableType] | None = None) -> Display:
    if console.is_terminal and not console.is_dumb_terminal:
        return Live(console, header)
    return Plain(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def simulated_line(title: str, total: int, ended: int, seconds: float) -> str:
    """``simulated-fcfs: 1,200 of 5,000 requests, 3:20 simulated``."""
    return f"{title}: {ended:,} of {total:,} requests, {clock(seconds)} simulated"


def progress_line(state: LoadState) -> str:
    """``sent 12/100, done 9, in flight 3, rejected 0, errors 0, ...`` with the latest error, if any."""
    from fgbench.live.layout import clean

    parts = [
        f"sent {state.sent}/{state.planned}",
        f"done {state.ok}",
        f"in flight {state.in_flight}",
        f"rejected {state.rejected}",
        f"errors {state.failed}",
        f"{state.achieved_rate:.2f}/s sent",
    ]
    if state.mean_latency is not None and state.mean_normalized_latency is not None:
        parts.append(f"mean latency {state.mean_latency:.2f} s")
        parts.append(f"{state.mean_normalized_latency * 1000:.1f} ms/token")
    if state.remaining is not None and state.ended < state.planned:
        parts.append(f"{clock(state.remaining)} to go")
    line = ", ".join(parts)
    return f"{line}; last error: {clean(state.last_error)}" if state.last_error else line
