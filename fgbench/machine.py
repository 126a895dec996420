"""Measures how much of the machine other programs use during a run."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

import psutil

from fgbench.metrics.accounts import MachineAccount
from fgengine.machine_load import BUSY_CORES, Sample, core_seconds, load_between, mhz, sample

INTERVAL = 1.0
"""Seconds between two measurements."""
SHORTEST = 0.5
"""Shortest time over which a load is measured, in seconds; CPU times have a resolution of 10 ms."""
FORWARDERS = ("docker-proxy", "rootlessport", "ssh")
"""Programs that listen on a port and forward to the real server, whose processes are then not known."""


class MachineWatch:
    """A context manager that measures the machine; after it, ``account`` holds the result.

    Use::

        with MachineWatch(server_pids) as watch:
            ...  # send the load
        print(watch.account)

    ``server``: processes of the server under test, which do not count as other programs. Processes that this
    process started do not count either.
    """

    def __init__(self, server: Iterable[int] = ()) -> None:
        self._server = tuple(server)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="machine-watch", daemon=True)
        self._others: list[float] = []
        self._mhz: list[float] = []
        self._before: Sample | None = None
        self.account: MachineAccount | None = None

    def __enter__(self) -> MachineWatch:
        self._before = sample(self._server)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        assert self._before is not None
        load = load_between(self._before, sample(self._server))
        self.account = MachineAccount(
            seconds=load.seconds,
            other_cores=load.other_cores,
            peak_cores=max([*self._others, load.other_cores]),
            busy_share=sum(cores > BUSY_CORES for cores in self._others) / max(1, len(self._others)),
            stolen_cores=load.stolen_cores,
            memory_stalled_share=load.memory_stalled_share,
            mhz=sum(self._mhz) / len(self._mhz) if self._mhz else load.mhz,
            programs=load.programs,
            busy=load.is_busy,
        )

    def _sample(self) -> None:
        """Measure once per interval. Reads only our own processes, because reading all takes some ms."""
        assert self._before is not None
        ours = [process for pid in self._before.ours if (process := _process(pid)) is not None]
        last = time.monotonic(), core_seconds()[0], _spent(ours)
        while not self._ended.wait(INTERVAL):
            now = time.monotonic(), core_seconds()[0], _spent(ours)
            others = (now[1] - last[1]) - (now[2] - last[2])
            self._others.append(max(0.0, others) / (now[0] - last[0]))
            if (frequency := mhz()) is not None:
                self._mhz.append(frequency)
            last = now


def busy_since(before: Sample, url: str) -> str | None:
    """Return a sentence if other programs used too much of the machine since ``before``, else None.

    Also returns None if the work of the server at ``url`` cannot be separated from other programs' work, or
    if too little time has passed.
    """
    server = server_processes(url)
    if server is None or time.monotonic() - before.at < SHORTEST:
        return None
    load = load_between(before, sample(server))
    return load.describe() if load.is_busy else None


def server_processes(url: str) -> list[int] | None:
    """Return a list with the process that serves ``url``, or an empty list if it is on another machine.

    Returns None if the server is on this machine but its process cannot be found: it is in a container,
    behind a tunnel, or belongs to another user.
    """
    parts = urlsplit(url)
    if not _is_here(parts.hostname or ""):
        return []
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            at = getattr(connection.laddr, "port", None)
            if connection.status == psutil.CONN_LISTEN and at == port:
                if connection.pid is None or psutil.Process(connection.pid).name() in FORWARDERS:
                    return None
                return [connection.pid]
    return None


def server_cores(url: str) -> tuple[int, ...] | None:
    """Return the cores that the process that serves ``url`` may use, or None if they are not known.

    It is the limit of the process. A program can bind single threads to fewer cores, which is not seen.
    """
    processes = server_processes(url)
    if not processes or not hasattr(psutil.Process, "cpu_affinity"):
        return None
    with suppress(psutil.Error):
        return tuple(sorted(psutil.Process(processes[0]).cpu_affinity()))
    return None


def _is_here(host: str) -> bool:
    """Whether the host is this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == socket.gethostname()
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    return address.is_loopback or address.is_unspecified or host in own


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:  # it has just ended
        return None


def _spent(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds of the processes. A process that has ended counts as 0."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
