"""Samples a server's own figures during a load: batch, queues, KV memory, preemptions, cache hits, power."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

from fgbench.backends.gpu_energy import GpuMeter
from fgbench.backends.prefix_cache import cache_counters
from fgbench.backends.probe import StatsError, read_metrics, read_stats

INTERVAL = 1.0
"""Seconds between two samples."""
COUNTS = ("running", "waiting", "swapped", "preemptions", "generated_tokens", "prompt_tokens", "finished")
"""Names that /stats and vLLM's metrics share; the last four only increase."""


class ServerWatch:
    """A context manager that writes one sample per interval to a file, in a thread of its own.

        with ServerWatch(url, folder / FILE) as watch:
            ...
        watch.samples

    If the server reports nothing and there are no GPUs to measure, no file is written.
    """

    def __init__(
        self, url: str, path: Path, interval: float = INTERVAL, gpus: GpuMeter | None = None
    ) -> None:
        self.samples = 0
        self.gpu_energy: float | None = None
        """Energy of the GPUs between the first and the last sample, in joules; None: not known."""
        self._gpus = gpus
        self._url, self._path, self._interval = url, path, interval
        self._read = _reader(url)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="server metrics", daemon=True)

    def __enter__(self) -> ServerWatch:
        if self._read is not None or self._power():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _power(self) -> dict[str, float]:
        return self._gpus.read() if self._gpus is not None else {}

    def _reported(self) -> dict[str, float]:
        """Return what the server and the GPUs report now. A server may not answer, as during a long step."""
        power = self._power()
        try:
            return {**(sample(self._read()) if self._read is not None else {}), **power}
        except StatsError:
            return power

    def _watch(self) -> None:
        start = time.monotonic()
        used: list[float] = []
        try:
            with self._path.open("w", encoding="utf-8") as file:
                ended = False
                while True:
                    row = {"at": round(time.monotonic() - start, 3), **self._reported()}
                    used += [row["gpu_energy_j"]] if "gpu_energy_j" in row else []
                    self.gpu_energy = used[-1] - used[0] if len(used) > 1 else None
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    self.samples += 1
                    if ended:
                        return
                    ended = self._ended.wait(self._interval)  # then one more sample shows the end
        except OSError:
            return  # a full disk: the load goes on


def sample(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of /stats, or of vLLM's metrics under the same names, that are sampled."""
    found = {name: float(values[name]) for name in COUNTS if _is_number(values.get(name))}
    for pool in ("device", "host"):
        if (share := _used_share(values, pool)) is not None:
            found[f"{pool}_used_share"] = round(share, 4)
    for name in ("hits", "looked_up"):
        if _is_number(values.get(name)):
            found[name] = float(values[name])
    return found


def _reader(url: str) -> Callable[[], Mapping[str, Any]] | None:
    """Return the function that reads this server's figures; None if it reports none."""

    def metrics() -> Mapping[str, Any]:
        return {**read_metrics(url), **(cache_counters(url) or {})}

    def stats() -> Mapping[str, Any]:
        return read_stats(url)

    for read in (stats, metrics):
        try:
            read()
        except StatsError:
            continue
        return read
    return None


def _used_share(values: Mapping[str, Any], pool: str) -> float | None:
    share = values.get(f"{pool}_used_share")
    blocks, free = values.get(f"num_{pool}_blocks"), values.get(f"free_{pool}_blocks")
    if _is_number(share):
        return float(share)
    return 1.0 - float(free) / float(blocks) if _is_number(blocks) and _is_number(free) and blocks else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
