"""Watches a running server: queries its statistics repeatedly, and shows them as a panel, lines or JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.text import Text

from fgbench.backends.probe import AccessDenied, NotReady, SilentServer, StatsError, read_metrics, read_stats
from fgbench.live.layout import Lines, clean, rule
from fgbench.live.meter import Meter
from fgbench.live.server_panel import counts, gauges, level_lines, name_of, pressure_line, trends
from fgengine.units import clock, number, percent, seconds, size

PATIENCE_SECONDS = 15.0
"""Seconds for which a server may not answer; long, because it does not answer during a step."""
Ask = Callable[[], Mapping[str, Any]]


def reader(url: str) -> Ask:
    """Return a function that reads the server's statistics: fastgen's /stats, else vLLM's /metrics.

    The server's first answer decides which one is used. The function raises StatsError, as ``read_stats``
    does.
    """
    chosen: list[Ask] = []

    def ask() -> Mapping[str, Any]:
        if chosen:
            return chosen[0]()
        try:
            values = read_stats(url)
            chosen.append(lambda: read_stats(url))
        except (SilentServer, AccessDenied):
            raise
        except StatsError:
            values = read_metrics(url)
            chosen.append(lambda: read_metrics(url))
        return values

    return ask


class Watch:
    """A watched server. The caller calls ``tick`` every ``interval`` seconds.

    Example::

        watched = Watch(url, reader(url), interval=1.0)
        watched.tick()
        print(watched.line())
    """

    def __init__(
        self, url: str, ask: Ask, interval: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = url
        self.meter = Meter(interval)
        self.values: Mapping[str, Any] = {}
        """The statistics of the last answer, unchanged."""
        self.trouble = ""
        """A sentence that says why the last query got no answer; empty if it got one."""
        self._ask, self._now = ask, now
        self._heard: float | None = None

    def tick(self) -> None:
        """Query the server once.

        Raises StatsError if there is no server, if it has no statistics, or if it does not answer for too
        long.
        """
        try:
            self.values = self._ask()
        except NotReady as error:  # the server is alive
            self._miss(error)
            self._heard = self._now()
        except SilentServer as error:
            if self._heard is None:
                raise
            self._miss(error)
            if self._now() - self._heard >= PATIENCE_SECONDS:
                raise StatsError(
                    f"the server at {self.url} has not answered for {PATIENCE_SECONDS:g} s and has probably "
                    "ended: start it again"
                ) from None
        else:
            self._heard, self.trouble = self._now(), ""
            self.meter.take(self.values, self._heard)

    def panel(self, height: int | None = None) -> Lines:
        """Return the panel. ``height``: available lines; None: the height of the terminal."""
        snapshot = self.meter.snapshot
        name = name_of(snapshot) if snapshot is not None else ""
        title = f"{clean(self.url, 60)} · {name}" if name else clean(self.url, 60)
        span = len(self.meter.history["generated_tokens"]) * self.meter.interval
        subtitle = [f"every {self.meter.interval:g} s"]
        if span:
            subtitle.append(f"curves: the last {clock(span)}")
        if snapshot is not None and snapshot.uptime is not None:
            subtitle.insert(0, f"up {clock(snapshot.uptime)}")
        return Lines(title, self._sections, " · ".join(subtitle), height)

    def line(self) -> str:
        """Return the newest statistics in one line, for files and pipes."""
        snapshot, rates = self.meter.snapshot, self.meter.rates
        if snapshot is None or self.trouble:
            return clean(self.trouble)
        parts = [
            f"{name} {value}"
            for name, value in (
                ("running", snapshot.running),
                ("waiting", snapshot.waiting),
                ("offloaded", snapshot.swapped),
            )
            if value is not None
        ]
        for name, pool in (("device KV", snapshot.device), ("host KV", snapshot.host)):
            if pool is not None:
                parts.append(f"{name} {pool.used_share:.0%}")
        if rates is not None:
            parts.append(f"{number(rates.generated_tokens)} output tokens/s")
            parts.append(f"{number(rates.finished)} requests done/s")
            parts.append(f"{number(rates.preemptions)} preemptions/s")
            if rates.step_seconds is not None:
                parts.append(f"step {seconds(rates.step_seconds)}")
            if rates.offloaded_bytes is not None and rates.uploaded_bytes is not None:
                parts.append(f"offload {size(rates.offloaded_bytes)}/s")
                parts.append(f"upload {size(rates.uploaded_bytes)}/s")
            if rates.copy_wait_share is not None:
                parts.append(f"device idle for copies {percent(rates.copy_wait_share)}")
        parts += [text.plain for text in pressure_line(self.meter)]
        return ", ".join(parts)

    def json(self) -> dict[str, Any]:
        """Return the newest statistics and rates as plain JSON."""
        rates = self.meter.rates
        return {
            "url": self.url,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "stats": dict(self.values),
            "rates": None if rates is None else asdict(rates),
        }

    def _miss(self, error: StatsError) -> None:
        self.trouble = str(error)
        self.meter.miss()

    def _sections(self, width: int) -> list[tuple[int, list[Text]]]:
        meter, sections = self.meter, []
        if self.trouble:
            silence = meter.silence(self._now())
            since = f"; last answer {clock(silence)} ago" if meter.snapshot is not None else ""
            sections.append((0, [Text(clean(self.trouble + since, width), style="yellow")]))
        if meter.restarts:
            times = "once" if meter.restarts == 1 else f"{meter.restarts} times"
            sections.append((9, [Text(f"the server was restarted {times}", style="yellow")]))
        if meter.snapshot is None:
            return sections or [(0, [Text("waiting for the server's first answer", style="dim")])]
        if pressed := pressure_line(meter):
            sections.append((1, pressed))
        sections.append((1, counts(meter, width)))
        sections.append((2, gauges(meter.snapshot, width)))
        if levels := level_lines(meter.snapshot.levels, width):
            sections.append((3, [rule("requests per level, with its quantum", width), *levels]))
        if curves := trends(meter, width):
            sections.append((4, [rule("now and over the last minutes", width)]))
            sections.extend((4 + rank, lines) for rank, lines in curves)
        return sections
