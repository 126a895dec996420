"""The base class of backends that are measured over HTTP."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgbench.backends.backend import BackendError, Display, Keep, Outcome, ReadyServer, Report
from fgbench.backends.gpu_energy import GpuMeter
from fgbench.backends.prefix_cache import Reset, cache_counters, reset_cache
from fgbench.backends.probe import ask_stats
from fgbench.backends.sampling import INTERVAL, ServerWatch
from fgbench.client.endpoints import endpoint_called, wishes_of
from fgbench.client.sending import Ended, Target, run_async, run_load
from fgbench.client.state import LoadState
from fgbench.machine import MachineWatch, busy_since, server_cores, server_processes
from fgbench.metrics.conditions import Conditions, cache_account, shared_share
from fgbench.metrics.record import RequestRecord
from fgbench.results.server_samples import FILE
from fgbench.spec.access import OPEN, Access
from fgbench.spec.load import Load
from fgbench.workload.datasets import token_counter
from fgbench.workload.workload import RequestSpec, Workload
from fgengine.machine_load import Sample, sample


class Server(ABC):
    """Sends loads to a server. A subclass starts the server, or finds it.

    A subclass implements ``_start`` and ``alive``, and ``log_tail`` if it can read the server's log.
    """

    name: str
    policy: str | None = None
    model: str | None = None
    url: str | None = None
    endpoint: str | None = "completions"
    simulated = False
    max_prompts = math.inf
    access: Access = OPEN
    """How the server is reached: headers such as a key, and TLS."""

    _ready: ReadyServer | None = None
    _started: Sample | None = None
    """State of the machine when ``start`` was called."""
    _run_folder: Path | None = None
    """Folder of the run."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as plain JSON; empty if they are not known."""
        return {}

    @abstractmethod
    def _start(self, log: Path, report: Report) -> ReadyServer:
        """Do what ``start`` describes."""

    @abstractmethod
    def alive(self) -> bool:
        """Whether the server still runs."""

    def log_tail(self) -> str:
        """Return the end of the server's log, for an error message; may be empty."""
        return ""

    def prepare(self, report: Report) -> None:  # noqa: B027 (may do nothing)
        """Do nothing: there are no slow preparations."""

    def share(self, log: Path) -> None:  # noqa: B027 (may do nothing)
        """Do nothing: a running server is always shared."""

    def start(self, log: Path, report: Report) -> ReadyServer:
        """Start the server, or connect to it; return when it accepts requests. Raises BackendError."""
        self._started = sample()
        self._run_folder = log.parent
        self._ready = self._start(log, report)
        return self._ready

    def stop(self) -> None:  # noqa: B027 (may do nothing)
        """Do nothing: a running server is not stopped."""

    def close(self) -> None:  # noqa: B027 (may do nothing)
        """Do nothing: a running server is not stopped."""

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Display) -> Outcome:
        """Warm the server up, send the load, and collect the server's and the machine's statistics."""
        assert self._ready is not None
        url = self._ready.url
        target = Target(
            url,
            self._ready.model,
            endpoint_called(load.endpoint or self.endpoint or "completions", wishes_of(load)),
            load.request_timeout,
            self.access,
            _token_counter(load.tokenizer) if load.tokenizer else None,
        )
        if workload.warmup:
            self._warm_up(workload.warmup, target, display)
        if self._started is not None and (busy := busy_since(self._started, url)) is not None:
            display.report(f"the machine is busy, so the figures will be marked: {busy}")
        before = ask_stats(url)
        facts: dict[str, Any] = {}
        requests = tuple(request for request in workload.requests if request.scheduled < load.duration)
        state = LoadState.of(requests)
        with (
            _conditions_recorded(self._ready, requests, state, facts, has_cache=before is None),
            _machine_watched(url, facts),
            _server_watched(url, self._run_folder, facts),
        ):
            ended = self._send(requests, load, target, keep, display, state, None if before is None else url)
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
        state: LoadState,
        stats_url: str | None,
    ) -> Ended:
        with display.load(self.name, state, stats_url):
            return run_async(
                run_load(
                    requests,
                    target,
                    keep,
                    state=state,
                    alive=self.alive,
                    concurrency=load.arrivals.concurrency,
                    max_concurrency=load.max_concurrency,
                    duration=load.duration,
                )
            )


def _token_counter(folder: str) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text with the tokenizer in a folder."""
    count = token_counter(Path(folder))
    return lambda text: count([text])[0]


@contextmanager
def _machine_watched(url: str, facts: dict[str, Any]) -> Iterator[None]:
    """Add the load of other programs to ``facts``, if the server's own processes are known."""
    server = server_processes(url)
    if server is None:
        yield
        return
    with MachineWatch(server) as watch:
        yield
    if watch.account is not None:
        facts["machine"] = watch.account.to_json()


@contextmanager
def _server_watched(url: str, folder: Path | None, facts: dict[str, Any]) -> Iterator[None]:
    """Sample the server's own figures into the run's folder, if it reports any."""
    if folder is None:
        yield
        return
    gpus = GpuMeter() if server_processes(url) is not None else None  # GPUs of another machine cannot be read
    with ServerWatch(url, folder / FILE, gpus=gpus) as watch:
        yield
    if watch.samples:
        energy = {} if watch.gpu_energy is None else {"gpu_energy_j": round(watch.gpu_energy, 3)}
        facts["server_metrics"] = {
            "file": FILE,
            "interval_s": INTERVAL,
            "samples": watch.samples,
            **energy,
        }


@contextmanager
def _conditions_recorded(
    ready: ReadyServer,
    requests: tuple[RequestSpec, ...],
    state: LoadState,
    facts: dict[str, Any],
    *,
    has_cache: bool,
) -> Iterator[None]:
    """Reset the server's prefix cache. After the load, add its hits and the answers' usage to ``facts``.

    ``has_cache``: Whether the server may have a prefix cache; FastGen has none.
    """
    reset = reset_cache(ready.url, ready.owner) if has_cache else Reset(False)
    before = cache_counters(ready.url) if has_cache else None
    yield
    after = None if before is None else cache_counters(ready.url)
    usage = state.usage
    if has_cache or usage.cached_tokens is not None:
        account = cache_account(
            reset=reset.done,
            reset_answer=reset.answer,
            prompt_tokens=usage.counted_tokens or sum(request.prompt_tokens for request in requests),
            shared_share=shared_share([request.prompt for request in requests]),
            cached_tokens=usage.cached_tokens,
            counters=None if before is None or after is None else (before, after),
        )
        facts["prefix_cache"] = account.to_json()
    facts["conditions"] = Conditions(
        texts=usage.texts,
        without_usage=usage.without_usage,
        miscounted=usage.miscounted,
        sent_tokens=usage.sent_tokens,
        counted_tokens=usage.counted_tokens,
        cores=server_cores(ready.url),
    ).to_json()
