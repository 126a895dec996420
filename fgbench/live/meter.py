"""Collects a server's statistics: the newest snapshot, rates since the previous one, and their history."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from fgbench.backends.probe import StatsError
from fgbench.live.layout import Series
from fgbench.live.stats import Rates, Snapshot, rates_between, started_again

RECENT_SECONDS = 60.0
"""Seconds that ``recent_pressure`` looks back."""
RATES = tuple(f.name for f in fields(Rates) if f.name != "seconds")


class Meter:
    """The statistics of one server over time.

    It queries no server: the caller passes the statistics to ``take``. One thread may call ``take`` and
    another one may read.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        """Seconds between two snapshots."""
        self.snapshot: Snapshot | None = None
        self.rates: Rates | None = None
        self.history: defaultdict[str, Series] = defaultdict(Series)
        """The values of each of ``RATES``."""
        self.restarts = 0
        """Number of restarts of the server."""
        self._recent: deque[Snapshot] = deque()
        """Snapshots of the last ``RECENT_SECONDS``, and the one before them."""

    def take(self, values: Mapping[str, Any], at: float) -> None:
        """Add a snapshot.

        Args:
            values: The JSON of /stats.
            at: Seconds on the caller's clock.
        """
        snapshot, before = Snapshot.of(values, at), self.snapshot
        rates = None if before is None else rates_between(before, snapshot)
        if before is not None and started_again(before, snapshot):
            self.restarts += 1
            self._recent.clear()
        for name in RATES:
            if before is not None:
                self.history[name].add(None if rates is None else getattr(rates, name))
        self.snapshot, self.rates = snapshot, rates
        self._recent.append(snapshot)
        while len(self._recent) > 2 and at - self._recent[1].at >= RECENT_SECONDS:
            self._recent.popleft()

    def recent_pressure(self) -> tuple[float, float] | None:
        """Return (seconds under memory pressure, seconds looked back), for at most the last minute.

        Returns None if the server does not report it, or if there is only one snapshot.
        """
        if len(self._recent) < 2:
            return None
        rates = rates_between(self._recent[0], self._recent[-1])
        if rates is None or rates.pressure_share is None:
            return None
        return rates.pressure_share * rates.seconds, rates.seconds

    def miss(self) -> None:
        """Add a gap to the history, because the server did not answer in time."""
        for series in self.history.values():
            series.add(None)

    def silence(self, now: float) -> float:
        """Return the seconds since the newest snapshot; 0 before the first."""
        return 0.0 if self.snapshot is None else now - self.snapshot.at


class Poller:
    """Queries a server's statistics every ``interval`` seconds in a separate thread.

    A query costs the server one message between two steps, and this process about a millisecond. It does not
    use the load generator's event loop.
    """

    def __init__(self, ask: Callable[[], Mapping[str, Any]], interval: float) -> None:
        """``ask``: returns the JSON of /stats; may block; raises StatsError if there is no answer."""
        self.meter = Meter(interval)
        self._ask = ask
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stats", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more queries. Does not wait for a query in progress."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.meter.take(self._ask(), time.monotonic())
            except StatsError:
                self.meter.miss()
            self._ended.wait(self.meter.interval)
