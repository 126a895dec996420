"""Live progress: a moving line on a terminal, plain lines elsewhere, nothing where nobody looks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from fgbench.client.state import LoadState

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

FRAMES_PER_SECOND = 4
LINE_SECONDS = 5.0


class Display(Protocol):
    def report(self, line: str) -> None:
        """Something was begun that takes a while."""
        ...

    def load(self, title: str, state: LoadState) -> contextlib.AbstractContextManager[None]:
        """Shows ``state`` as it changes, until the context ends."""
        ...


class Quiet:
    def report(self, line: str) -> None:
        pass

    def load(self, title: str, state: LoadState) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Plain:
    """A line every few seconds: for files, pipes and CI."""

    def __init__(self, write: Callable[[str], None], every: float = LINE_SECONDS) -> None:
        self._write = write
        self._every = every

    def report(self, line: str) -> None:
        self._write(line)

    @contextlib.contextmanager
    def load(self, title: str, state: LoadState) -> Iterator[None]:
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


class Live:
    """A progress bar and a line of figures, redrawn in a thread of rich's own."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def report(self, line: str) -> None:
        self._console.print(line, style="dim", highlight=False, markup=False)

    @contextlib.contextmanager
    def load(self, title: str, state: LoadState) -> Iterator[None]:
        from rich.live import Live as RichLive

        with RichLive(
            get_renderable=lambda: picture(title, state),
            console=self._console,
            refresh_per_second=FRAMES_PER_SECOND,
        ):
            yield


def display_for(console: Console) -> Display:
    if console.is_terminal:
        return Live(console)
    return Plain(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def progress_line(state: LoadState) -> str:
    """``sent 12/100, done 9, in flight 3, errors 0, 2.48/s, ...`` with the latest error, if any."""
    parts = [
        f"sent {state.sent}/{state.planned}",
        f"done {state.ok}",
        f"in flight {state.in_flight}",
        f"errors {state.failed}",
        f"{state.achieved_rate:.2f}/s sent",
    ]
    if state.mean_latency is not None and state.mean_normalized_latency is not None:
        parts.append(f"mean latency {state.mean_latency:.2f} s")
        parts.append(f"{state.mean_normalized_latency * 1000:.1f} ms/token")
    if state.remaining is not None and state.ended < state.planned:
        parts.append(f"{_clock(state.remaining)} to go")
    line = ", ".join(parts)
    return f"{line}; last error: {state.last_error}" if state.last_error else line


def picture(title: str, state: LoadState) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    row.add_row(
        Text(title, style="bold"),
        ProgressBar(total=max(state.planned, 1), completed=state.ended, width=40),
        Text(f"{state.ended}/{state.planned}  {_clock(state.elapsed)}"),
    )
    return Group(row, Text(progress_line(state), style="dim"))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
