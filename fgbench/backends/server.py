"""A server that is measured over HTTP, wherever it runs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fgbench.backends.backend import BackendError, Display, Keep, Outcome, ReadyServer, Report
from fgbench.backends.probe import ask_stats
from fgbench.client.endpoints import endpoint_called
from fgbench.client.sending import Ended, Target, run_async, run_load
from fgbench.client.state import LoadState
from fgbench.machine import MachineWatch, busy_since, server_processes
from fgbench.metrics.record import RequestRecord
from fgbench.spec.load import Load
from fgbench.workload.workload import RequestSpec, Workload
from fgengine.machine_load import Sample, sample


class Server(ABC):
    """Sends loads to a server; a subclass says where one comes from.

    Of the server under test a subclass knows whether it is ``alive`` and its ``log_tail``.
    """

    name: str
    policy: str | None = None
    model: str | None = None
    url: str | None = None
    endpoint: str | None = "completions"
    simulated = False
    most_prompts = math.inf
    headers: Mapping[str, str] = MappingProxyType({})
    """Sent with every request."""

    _ready: ReadyServer | None = None
    _started: Sample | None = None
    """The machine, when the server was asked for."""

    @property
    def settings(self) -> dict[str, Any]:
        """None that are known."""
        return {}

    @abstractmethod
    def _start(self, log: Path, report: Report) -> ReadyServer:
        """As ``start``."""

    @abstractmethod
    def alive(self) -> bool: ...

    def log_tail(self) -> str:
        """The end of its log, for a message about its death; may be empty."""
        return ""

    def prepare(self, report: Report) -> None:  # noqa: B027 (may do nothing)
        """Nothing takes long."""

    def share(self, log: Path) -> None:  # noqa: B027 (may do nothing)
        """Nothing to do: it runs already."""

    def start(self, log: Path, report: Report) -> ReadyServer:
        self._started = sample()
        self._ready = self._start(log, report)
        return self._ready

    def stop(self) -> None:  # noqa: B027 (may do nothing)
        """Not ours to stop."""

    def close(self) -> None:  # noqa: B027 (may do nothing)
        """Not ours to stop."""

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Display) -> Outcome:
        assert self._ready is not None
        url = self._ready.url
        endpoint = endpoint_called(load.endpoint or self.endpoint or "completions")
        target = Target(url, self._ready.model, endpoint, load.request_timeout, self.headers)
        if workload.warmup:
            self._warm_up(workload.warmup, target, display)
        if self._started is not None and (busy := busy_since(self._started, url)) is not None:
            display.report(f"the machine is busy, the figures will be marked: {busy}")
        before = ask_stats(url)
        facts: dict[str, Any] = {}
        with _machine_watched(url, facts):
            ended = self._send(
                workload.requests, load, target, keep, display, None if before is None else url
            )
        if before is not None and (after := ask_stats(url)) is not None:
            facts["server_stats"] = {"before": before, "after": after}
        if ended == "server died":
            return Outcome("failed", facts | {"error": f"the server died: {self.log_tail()}"})
        return Outcome(ended, facts)

    def _warm_up(self, requests: tuple[RequestSpec, ...], target: Target, display: Display) -> None:
        display.report(f"warming up with {len(requests)} requests")
        records: list[RequestRecord] = []
        ended = run_async(run_load(requests, target, records.append, alive=self.alive))
        if ended == "interrupted":
            raise KeyboardInterrupt
        if ended == "server died":
            raise BackendError(f"the server died while warming up; its log ends:\n{self.log_tail()}")
        if not any(record.ok for record in records):
            why = records[0].error or records[0].rejected
            raise BackendError(f"no warm-up request was answered; the first failed with {why}")

    def _send(
        self,
        requests: tuple[RequestSpec, ...],
        load: Load,
        target: Target,
        keep: Keep,
        display: Display,
        stats_url: str | None,
    ) -> Ended:
        requests = tuple(request for request in requests if request.scheduled < load.duration)
        state = LoadState.of(requests)
        with display.load(self.name, state, stats_url):
            return run_async(
                run_load(
                    requests,
                    target,
                    keep,
                    state=state,
                    alive=self.alive,
                    concurrency=load.arrivals.concurrency,
                    duration=load.duration,
                )
            )


@contextmanager
def _machine_watched(url: str, facts: dict[str, Any]) -> Iterator[None]:
    """Afterwards ``facts`` say what else the machine did, where that can be told from the server's work."""
    server = server_processes(url)
    if server is None:
        yield
        return
    with MachineWatch(server) as watch:
        yield
    if watch.account is not None:
        facts["machine"] = watch.account.to_json()
