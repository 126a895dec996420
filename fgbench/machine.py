"""Watches the machine while a run lasts: what other programs take of it, second by second."""

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
SHORTEST = 0.5
"""Seconds over which a load can be told: times of processes are counted in hundredths."""
FORWARDERS = ("docker-proxy", "rootlessport", "ssh")
"""Who listens for a server elsewhere: whose work is that of the server cannot be told."""


class MachineWatch:
    """A context; afterwards ``account`` says what it saw.

    ``server``: processes of the server under test, whose work is not another program's; those that the client
    started are known.
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
        """Reads only our own processes: reading all would take a few ms of the client's time each second."""
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
    """What other programs have taken since ``before``, where that is too much for a measurement of the server
    at ``url``; else None. None too where it cannot be told from the server's work, or in too short a time."""
    server = server_processes(url)
    if server is None or time.monotonic() - before.at < SHORTEST:
        return None
    load = load_between(before, sample(server))
    return load.describe() if load.is_busy else None


def server_processes(url: str) -> list[int] | None:
    """The process that serves ``url``, as a list; empty where the server runs on another machine.

    None: the server is on this machine, but its process cannot be found. It is in a container, behind a
    tunnel, or another user's.
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


def _is_here(host: str) -> bool:
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
    """Seconds of processors; of one that has ended none, so that it seems to have given its own back."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
