"""A server watched for a while: its newest snapshot, the rates since the one before, and how they went."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from fgbench.backends.probe import StatsError
from fgbench.live.series import Series
from fgbench.live.stats import Rates, Snapshot, rates_between, started_again

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

    def take(self, values: Mapping[str, Any], at: float) -> None:
        """``values``: the JSON of /stats; ``at``: seconds on the asker's clock."""
        snapshot, before = Snapshot.of(values, at), self.snapshot
        rates = None if before is None else rates_between(before, snapshot)
        if before is not None and started_again(before, snapshot):
            self.restarts += 1
        for name in RATES:
            if before is not None:
                self.history[name].add(None if rates is None else getattr(rates, name))
        self.snapshot, self.rates = snapshot, rates

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
