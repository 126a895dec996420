"""Shows the progress of a run: as a panel on a terminal, as lines elsewhere, or not at all."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fgbench.backends.backend import Display, Passing, SimulationProgress
from fgbench.backends.probe import read_stats
from fgbench.client.state import LoadState
from fgengine.units import clock

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.status import Status

    from fgbench.live.load_panel import LoadView

FRAME_SECONDS = 0.5
"""Seconds between two frames of the panel."""
SAMPLE_SECONDS = 1.0
"""Seconds between two points of a curve."""
STATS_SECONDS = 1.0
"""Seconds between two queries of the server's statistics."""
SWITCH_SECONDS = 0.0005
"""Python's thread switch interval while the panel is shown, in seconds."""
LINE_SECONDS = 15.0
"""Seconds between two lines of plain progress."""
PROGRESS_EVERY = 100
"""Requests of a simulation between two updates."""


class Quiet:
    """A display that shows nothing."""

    def report(self, line: str) -> None:
        """Do nothing."""

    def load(
        self, title: str, state: LoadState, stats_url: str | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Show nothing."""
        return contextlib.nullcontext()

    def simulation(self, title: str, total: int) -> contextlib.AbstractContextManager[SimulationProgress]:
        """Show nothing."""
        return contextlib.nullcontext(lambda ended, seconds: None)


class Plain:
    """A display that writes a line every few seconds, for files, pipes and CI."""

    def __init__(self, write: Callable[[str], None], every: float = LINE_SECONDS) -> None:
        """``every``: seconds between two lines."""
        self._write = write
        self._every = every
        self._passing_due: float | None = None

    def report(self, line: str) -> None:
        """Write the line; a passing one only if none was written for ``every`` seconds."""
        if not isinstance(line, Passing):
            self._write(line)
            return
        from fgbench.live.layout import clean

        now = time.monotonic()
        if not line:
            self._passing_due = None
        elif self._passing_due is None:  # what takes less than ``every`` seconds needs no line
            self._passing_due = now + self._every
        elif now >= self._passing_due:
            self._passing_due = now + self._every
            self._write(f"  {clean(line)}")

    @contextlib.contextmanager
    def load(self, title: str, state: LoadState, stats_url: str | None = None) -> Iterator[None]:
        """Write the progress of a load until the context ends."""
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
        """Write the progress of a simulation until the context ends."""
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
    """A display that draws a panel twice a second in a separate thread.

    While the panel is shown, threads switch more often than every 5 ms, Python's default. A frame takes about
    2 ms, and the load's thread, which takes the times, must be able to run in the middle of a frame. With
    frames drawn without a pause, a sleep of 1 ms took 0.8 ms too long (median) instead of 3.2 ms.
    ``bench/display.py`` measures that the panel does not change the client's lag.
    """

    def __init__(self, console: Console, header: Callable[[], RenderableType] | None = None) -> None:
        """``header``: returns what is drawn above the panel; called for each frame in the drawing thread."""
        self._console = console
        self._header = header
        self._passing: Status | None = None

    def report(self, line: str) -> None:
        """Print the line; show a passing one next to a spinner, until it is empty."""
        from fgbench.live.layout import clean

        if isinstance(line, Passing):
            self._pass(clean(line, max(20, self._console.width - 4)))
            return
        self._console.print(clean(line), style="dim", highlight=False, markup=False)

    def _pass(self, line: str) -> None:
        """Show a line that the next one replaces; an empty one removes it."""
        from rich.text import Text

        if line:
            text = Text(line, style="dim")
            if self._passing is None:
                self._passing = self._console.status(text)
                self._passing.start()
            self._passing.update(text)
        elif self._passing is not None:
            self._passing.stop()
            self._passing = None

    @contextlib.contextmanager
    def load(self, title: str, state: LoadState, stats_url: str | None = None) -> Iterator[None]:
        """Show the panel of a load, with the server's statistics, until the context ends."""
        from fgbench.live.load_panel import LoadView
        from fgbench.live.meter import Poller

        poller = None
        if stats_url is not None:
            poller = Poller(lambda: read_stats(stats_url), STATS_SECONDS)
            poller.start()
        view = LoadView(title, state, poller.meter if poller else None)
        ended = threading.Event()
        thread = threading.Thread(target=self._draw, args=(view, ended), name="display", daemon=True)
        switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        thread.start()
        try:
            yield
        finally:
            if poller is not None:
                poller.stop()
            ended.set()
            thread.join()
            sys.setswitchinterval(switch_interval)

    @contextlib.contextmanager
    def simulation(self, title: str, total: int) -> Iterator[SimulationProgress]:
        """Show a progress bar of a simulation until the context ends."""
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
        """Draw frames until ``ended``, and a last frame. An error here does not stop the measurement."""
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
                    self._console.clear()  # remove the remains of the frame for the old size
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
    """Return a display that suits the console: a panel for a terminal, lines otherwise."""
    if console.is_terminal and not console.is_dumb_terminal:
        return Live(console, header)
    return Plain(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def simulated_line(title: str, total: int, ended: int, seconds: float) -> str:
    """Return a line such as ``simulated-fcfs: 1,200 of 5,000 requests, 3:20 simulated``."""
    return f"{title}: {ended:,} of {total:,} requests, {clock(seconds)} simulated"


def progress_line(state: LoadState) -> str:
    """Return a line such as ``sent 12/100, done 9, in flight 3, rejected 0, errors 0, ...``.

    It ends with the last error, if there was one.
    """
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
