"""The panel of a running load: its progress, rates and latencies."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from fgbench.client.state import LIVE, RECENT_SECONDS, LoadState
from fgbench.live.layout import Lines, Series, bar, clean, figure, flow, trend
from fgbench.live.meter import Meter
from fgbench.live.server_panel import brief
from fgengine.units import clock, number, seconds

COLUMN, LABEL = 11, 12
"""Widths of the table of latencies, in columns."""


class LoadView:
    """The panel of a load, with curves of its figures over time."""

    def __init__(self, title: str, state: LoadState, meter: Meter | None = None) -> None:
        self.title, self.state, self.meter = title, state, meter
        self.in_flight, self.tokens = Series(), Series()
        self._sampled: tuple[float, int] = (0.0, 0)
        """Elapsed seconds and output tokens at the last sample."""

    def sample(self) -> None:
        """Add a point to the curves. Call it about once per second."""
        elapsed, tokens = self.state.elapsed, self.state.tokens
        since, before = self._sampled
        self.in_flight.add(float(self.state.in_flight))
        self.tokens.add(max(0, tokens - before) / (elapsed - since) if elapsed > since else None)
        self._sampled = (elapsed, tokens)

    def draw(self, now: float, height: int | None = None) -> Lines:
        """Return the panel.

        Args:
            now: Seconds on the clock of the meter's snapshots.
            height: Available lines; None: the height of the terminal.
        """
        return Lines(clean(self.title, 100), lambda width: self._sections(width, now), height=height)

    def _sections(self, width: int, now: float) -> list[tuple[int, list[Text]]]:
        state = self.state
        sections = [
            (0, progress(state, width)),
            (1, counts(state, width)),
            (2, latencies(state, width)),
            (4, self._trends(width)),
        ]
        if self.meter is not None:
            sections.append((3, brief(self.meter, width, self.meter.silence(now))))
        if state.last_error is not None:
            error = Text(f"last error: {clean(state.last_error, width - 12)}", style="red")
            sections.append((1, [error]))
        return sections

    def _trends(self, width: int) -> list[Text]:
        def value(now: float | None, series: Series) -> str:
            return f"{number(now)} (max {number(series.maximum)})"

        in_flight, tokens = self.in_flight, self.tokens
        return [
            trend("in flight", value(self.state.in_flight, in_flight), in_flight, width, "blue"),
            trend("output tokens/s", value(tokens.last, tokens), tokens, width),
        ]


def progress(state: LoadState, width: int) -> list[Text]:
    """Return a progress bar with the number of ended requests and the time."""
    text = f" {state.ended}/{state.planned}  {state.share:.0%}  {clock(state.elapsed)}"
    if state.remaining is not None and state.share < 1.0:
        text += f", {clock(state.remaining)} to go"
    return [Text.assemble(bar(state.share, max(4, width - len(text)), "green"), (text, "bold"))]


def counts(state: LoadState, width: int) -> list[Text]:
    """Return the numbers of requests, the rates and the client's lag."""
    if state.workers is not None:
        offered = f"{state.workers:,} at a time"
    else:
        offered = "all at once" if state.last_arrival == 0 else f"{number(state.offered_rate)}/s"
    parts = [
        figure("sent", f"{state.sent:,}"),
        figure("done", f"{state.ok:,}"),
        figure("in flight", f"{state.in_flight:,}"),
        figure("rejected", f"{state.rejected:,}", "bold yellow" if state.rejected else "bold"),
        figure("errors", f"{state.failed:,}", "bold red" if state.failed else "bold"),
        figure("offered", offered),
        figure("sent", f"{number(state.achieved_rate)}/s"),
        figure("answered", f"{number(state.answered_rate)}/s"),
        figure(
            "client lag",
            f"p50 {seconds(state.lag.quantile(0.5))}, p99 {seconds(state.lag.quantile(0.99))}",
        ),
    ]
    return flow(parts[:5], width) + flow(parts[5:], width)


def latencies(state: LoadState, width: int) -> list[Text]:
    """Return a row for each latency, over all answered requests and over those of the last seconds."""
    rows: list[tuple[str, tuple[str, ...]]] = [("", ("mean", "p50", "p99", f"last {RECENT_SECONDS:.0f} s"))]
    for metric, running, recent in zip(LIVE, state.latencies, state.recent_means(), strict=True):
        values = (running.mean, running.quantile(0.5), running.quantile(0.99), recent)
        rows.append((metric.label, tuple(map(seconds, values))))
    column = min(COLUMN, (width - LABEL) // 4)
    return [_row(label, values, column) for label, values in rows]


def _row(label: str, values: Sequence[str], column: int) -> Text:
    cells = "".join(value.rjust(column) for value in values)
    return Text.assemble((f"{label:<{LABEL}}", "dim"), (cells, "bold" if label else "dim"))
