"""Following a running server: asking it again and again, and the panel of what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.text import Text

from fgbench.backends.probe import NotReady, SilentServer, StatsError, read_metrics, read_stats
from fgbench.live.layout import Lines, clean, rule
from fgbench.live.meter import Meter
from fgbench.live.server_panel import counts, gauges, level_lines, name_of, pressure_line, trends
from fgengine.units import clock, number, percent, seconds, size

PATIENCE_SECONDS = 15.0
"""How long a server that was there may be silent: a long step lets nobody in between."""
Ask = Callable[[], Mapping[str, Any]]


def reader(url: str) -> Ask:
    """How the server at ``url`` is asked: for the /stats of our own, else for the /metrics of vLLM.

    Which of them, its first answer decides. The reader raises StatsError, as ``read_stats`` does.
    """
    chosen: list[Ask] = []

    def ask() -> Mapping[str, Any]:
        if chosen:
            return chosen[0]()
        try:
            values = read_stats(url)
            chosen.append(lambda: read_stats(url))
        except SilentServer:
            raise
        except StatsError:
            values = read_metrics(url)
            chosen.append(lambda: read_metrics(url))
        return values

    return ask


class Watch:
    """A server that is asked every ``interval`` seconds, by whoever calls ``tick``."""

    def __init__(
        self, url: str, ask: Ask, interval: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = url
        self.meter = Meter(interval)
        self.values: Mapping[str, Any] = {}
        """What it said last, as it said it."""
        self.trouble = ""
        """Why there was no answer to the last question, in a sentence; empty where there was one."""
        self._ask, self._now = ask, now
        self._heard: float | None = None

    def tick(self) -> None:
        """Ask once. Raises StatsError where there is nobody, nothing to watch, or silence for too long."""
        try:
            self.values = self._ask()
        except NotReady as error:  # it lives
            self._miss(error)
            self._heard = self._now()
        except SilentServer as error:
            if self._heard is None:
                raise
            self._miss(error)
            if self._now() - self._heard >= PATIENCE_SECONDS:
                raise StatsError(
                    f"the server at {self.url} has gone: no answer for {PATIENCE_SECONDS:g} s"
                ) from None
        else:
            self._heard, self.trouble = self._now(), ""
            self.meter.take(self.values, self._heard)

    def panel(self, height: int | None = None) -> Lines:
        snapshot = self.meter.snapshot
        name = name_of(snapshot) if snapshot is not None else ""
        title = f"{clean(self.url, 60)} · {name}" if name else clean(self.url, 60)
        span = len(self.meter.history["generated_tokens"]) * self.meter.interval
        told = [f"every {self.meter.interval:g} s"]
        if span:
            told.append(f"curves: the last {clock(span)}")
        if snapshot is not None and snapshot.uptime is not None:
            told.insert(0, f"up {clock(snapshot.uptime)}")
        return Lines(title, self._sections, " · ".join(told), height)

    def line(self) -> str:
        """The newest figures in one line, for files and pipes."""
        snapshot, rates = self.meter.snapshot, self.meter.rates
        if snapshot is None or self.trouble:
            return clean(self.trouble)
        parts = [
            f"{name} {value}"
            for name, value in (
                ("running", snapshot.running),
                ("waiting", snapshot.waiting),
                ("swapped", snapshot.swapped),
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
                parts.append(f"swaps {size(rates.offloaded_bytes)}/s out {size(rates.uploaded_bytes)}/s in")
            if rates.copy_wait_share is not None:
                parts.append(f"device idle for copies {percent(rates.copy_wait_share)}")
        parts += [text.plain for text in pressure_line(self.meter)]
        return ", ".join(parts)

    def json(self) -> dict[str, Any]:
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
            since = f"; last heard of {clock(silence)} ago" if meter.snapshot is not None else ""
            sections.append((0, [Text(clean(self.trouble + since, width), style="yellow")]))
        if meter.restarts:
            times = "once" if meter.restarts == 1 else f"{meter.restarts} times"
            sections.append((9, [Text(f"started again {times} since", style="yellow")]))
        if meter.snapshot is None:
            return sections or [(0, [Text("waiting for its first answer", style="dim")])]
        if pressed := pressure_line(meter):
            sections.append((1, pressed))
        sections.append((1, counts(meter, width)))
        sections.append((2, gauges(meter.snapshot, width)))
        if levels := level_lines(meter.snapshot.levels, width):
            sections.append((3, [rule("jobs per level, with its quantum", width), *levels]))
        if curves := trends(meter, width):
            sections.append((4, [rule("now and over the last minutes", width)]))
            sections.extend((4 + rank, lines) for rank, lines in curves)
        return sections
