"""A server watched for a while: its newest snapshot, the rates since the one before, and how they went."""

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
"""Over which ``recent_pressure`` looks back."""
RATES = tuple(f.name for f in fields(Rates) if f.name != "seconds")


class Meter:
    """Pure: it is handed what the server says. One thread hands it over, another one may read."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        """Seconds between two snapshots."""
        self.snapshot: Snapshot | None = None
        self.rates: Rates | None = None
        self.history: defaultdict[str, Series] = defaultdict(Series)
        """Of each of ``RATES``."""
        self.restarts = 0
        self._recent: deque[Snapshot] = deque()
        """Those of the last ``RECENT_SECONDS``, and one before them."""

    def take(self, values: Mapping[str, Any], at: float) -> None:
        """``values``: the JSON of /stats; ``at``: seconds on the asker's clock."""
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
        """Seconds under pressure of the last so many seconds, a minute where it was watched so long;
        None where the server does not say, or was looked at only once."""
        if len(self._recent) < 2:
            return None
        rates = rates_between(self._recent[0], self._recent[-1])
        if rates is None or rates.pressure_share is None:
            return None
        return rates.pressure_share * rates.seconds, rates.seconds

    def miss(self) -> None:
        """It did not answer in time: a gap."""
        for series in self.history.values():
            series.add(None)

    def silence(self, now: float) -> float:
        """Seconds since the newest snapshot; 0 before the first."""
        return 0.0 if self.snapshot is None else now - self.snapshot.at


class Poller:
    """Asks a server once in ``interval`` seconds, in a thread of its own.

    A question costs the server a message between two steps, and this process about a millisecond: the load
    generator's loop is never called, only waited for like any other thread.
    """

    def __init__(self, ask: Callable[[], Mapping[str, Any]], interval: float) -> None:
        """``ask`` may block; it raises StatsError where there is no answer."""
        self.meter = Meter(interval)
        self._ask = ask
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No question is asked after this; one that is being answered is not waited for."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.meter.take(self._ask(), time.monotonic())
            except StatsError:
                self.meter.miss()
            self._ended.wait(self.meter.interval)
