"""One benchmark run from beginning to end: start, warm up, load, summarize, keep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgbench.backends.backend import Backend, BackendError, Served
from fgbench.backends.probe import ask_stats
from fgbench.client.display import Display, Quiet
from fgbench.client.endpoints import endpoint_called
from fgbench.client.load import Outcome, Target, run_async, run_load
from fgbench.client.state import LoadState
from fgbench.machine import MachineWatch, busy_since, server_processes
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.metrics.trimming import WHOLE, Trim
from fgbench.results.environment import environment
from fgbench.results.fingerprint import fingerprint
from fgbench.results.run import Run, read_run
from fgbench.results.writer import RunWriter
from fgbench.workload.arrivals import POISSON, Arrivals
from fgbench.workload.build import build_workload, check_counts
from fgbench.workload.datasets import Dataset
from fgbench.workload.spec import RequestSpec, Workload
from fgengine.machine_load import look

_STATUS: dict[Outcome, str] = {"complete": "complete", "interrupted": "interrupted", "server died": "failed"}


@dataclass(frozen=True, slots=True)
class Load:
    """How a backend is loaded; the defaults are the command line's."""

    rate: float = 2.5
    """Requests per second; ``inf``: all at once. A closed loop has none: it is taken as ``inf``."""
    num_prompts: int = 100
    seed: int = 0
    num_warmup: int = 4
    endpoint: str = "completions"
    request_timeout: float = 3600.0
    """Seconds."""
    users: int = 1
    """Between whom the requests are shared out, the first sending most; 1: no user is sent."""
    arrivals: Arrivals = POISSON
    duration: float = math.inf
    """Seconds after which nothing more is sent."""
    trim: Trim = WHOLE
    """What is left out of the figures, though it is sent and kept."""

    def __post_init__(self) -> None:
        endpoint_called(self.endpoint)
        check_counts(
            num_prompts=self.num_prompts, num_warmup=self.num_warmup, seed=self.seed, users=self.users
        )
        if self.arrivals.concurrency is not None:
            object.__setattr__(self, "rate", math.inf)
        self.arrivals.check(self.rate)
        if not 0 < self.request_timeout < math.inf:
            raise ValueError(f"the request timeout must be above 0 seconds, not {self.request_timeout}")
        if not self.duration > 0:
            raise ValueError(f"--duration must be above 0 seconds, not {self.duration}")

    @property
    def offered_rate(self) -> float | None:
        """Requests per second that are asked for over the whole load; None: the server decides."""
        return self.arrivals.mean_rate(self.rate)


def run_benchmark(
    backend: Backend,
    dataset: Dataset,
    load: Load,
    *,
    results: Path,
    display: Display | None = None,
    point: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Start ``backend``, load it, stop it, and return the run as it lies under ``results``.

    An interrupted load (SIGINT, SIGTERM) and a server that dies under it give a run too, of status
    ``interrupted`` or ``failed``, with all requests that had ended. ``point`` is the sweep's, for run.json;
    ``options`` are those that repeat the run, for its spec.toml.

    Raises:
        ValueError: the workload cannot be made.
        BackendError: the server did not get ready, or answered no warm-up request.
        KeyboardInterrupt: before the load began; the run folder says so.
    """
    display = display or Quiet()
    build_workload(dataset, rate=math.inf, num_prompts=1)  # a useless dataset costs no model load
    with RunWriter(results, _first_info(backend, dataset, load) | {"point": point}, options) as writer:
        started = look()
        try:
            served = backend.start(writer.log_path, display.report)
            workload = build_workload(
                dataset,
                rate=load.rate,
                num_prompts=load.num_prompts,
                seed=load.seed,
                num_warmup=load.num_warmup,
                vocab_size=served.vocab_size,
                users=load.users,
                arrivals=load.arrivals,
            )
            writer.describe(**_full_info(backend, served, workload, load))
            target = Target(served.url, served.model, endpoint_called(load.endpoint), load.request_timeout)
            if workload.warmup:
                _warm_up(workload.warmup, target, backend, display)
            if (busy := busy_since(started, served.url)) is not None:
                display.report(f"the machine is busy, the figures will be marked: {busy}")
            before = ask_stats(served.url)
            stats_url = None if before is None else served.url
            with _watching(served.url, writer):
                outcome, records = _measure(
                    workload.requests, load, target, backend, writer, display, stats_url
                )
            if before is not None and (after := ask_stats(served.url)) is not None:
                writer.describe(server_stats={"before": before, "after": after})
            died = {"error": f"the server died: {backend.last_words()}"} if outcome == "server died" else {}
            summary = summarize(records, offered_rate=load.offered_rate, trim=load.trim)
            writer.finish(_STATUS[outcome], records, summary.to_dict(), **died)
        finally:
            backend.stop()
    return read_run(writer.path)


@contextmanager
def _watching(url: str, writer: RunWriter) -> Iterator[None]:
    """Keeps what else the machine did meanwhile, where that can be told from the server's own work."""
    server = server_processes(url)
    if server is None:
        yield
        return
    with MachineWatch(server) as watch:
        yield
    if watch.account is not None:
        writer.describe(machine=watch.account.to_json())


def _warm_up(requests: tuple[RequestSpec, ...], target: Target, backend: Backend, display: Display) -> None:
    display.report(f"warming up with {len(requests)} requests")
    records: list[RequestRecord] = []
    outcome = run_async(run_load(requests, target, records.append, alive=backend.alive))
    if outcome == "interrupted":
        raise KeyboardInterrupt
    if outcome == "server died":
        raise BackendError(f"the server died while warming up; its log ends:\n{backend.last_words()}")
    if not any(r.ok for r in records):
        why = records[0].error or records[0].rejected
        raise BackendError(f"no warm-up request was answered; the first failed with {why}")


def _measure(
    requests: tuple[RequestSpec, ...],
    load: Load,
    target: Target,
    backend: Backend,
    writer: RunWriter,
    display: Display,
    stats_url: str | None,
) -> tuple[Outcome, list[RequestRecord]]:
    records: list[RequestRecord] = []

    def keep(record: RequestRecord) -> None:
        records.append(record)
        writer.append(record)

    requests = within(requests, load.duration)
    state = LoadState.of(requests)
    with display.load(backend.name, state, stats_url):
        outcome = run_async(
            run_load(
                requests,
                target,
                keep,
                state=state,
                alive=backend.alive,
                concurrency=load.arrivals.concurrency,
                duration=load.duration,
            )
        )
    return outcome, records


def within(requests: tuple[RequestSpec, ...], duration: float) -> tuple[RequestSpec, ...]:
    """Those scheduled before ``duration`` seconds."""
    return tuple(request for request in requests if request.scheduled < duration)


def sending(load: Load) -> dict[str, Any]:
    """What of the limits decides the result, for a fingerprint; nothing where there are none."""
    return {} if math.isinf(load.duration) else {"duration": load.duration}


def limits(load: Load) -> dict[str, Any]:
    """Of run.json: when the sending stops, and what is left out of the figures."""
    return {
        "duration_limit_s": load.duration if math.isfinite(load.duration) else None,
        "trim": None if load.trim == WHOLE else load.trim.to_json(),
    }


def _first_info(backend: Backend, dataset: Dataset, load: Load) -> dict[str, Any]:
    """run.json as far as it is known before the server runs: the folder is named by it."""
    return {
        "backend": {
            "name": backend.name,
            "policy": backend.policy,
            "url": None,
            "endpoint": load.endpoint,
            "settings": backend.settings,
        },
        "model": backend.model,
        "workload": {
            "dataset": dataset.name,
            "num_prompts": load.num_prompts,
            "rate": load.rate if math.isfinite(load.rate) else "inf",
            "seed": load.seed,
            "arrivals": load.arrivals.label,
            "arrival_process": {"name": load.arrivals.name, **load.arrivals.parameters},
            "fingerprint": None,
        },
        **limits(load),
        "fingerprint": None,
        "environment": environment(),
    }


def _full_info(backend: Backend, served: Served, workload: Workload, load: Load) -> dict[str, Any]:
    described = workload.describe()
    model = served.model or backend.model
    first = {
        "name": backend.name,
        "policy": backend.policy,
        "endpoint": load.endpoint,
        "settings": backend.settings,
    }
    return {
        "backend": {**first, "url": served.url},
        "model": model,
        "workload": described,
        "warmup": len(workload.warmup),
        "request_timeout_s": load.request_timeout,
        "fingerprint": fingerprint(
            backend=first, model=model, workload=described["fingerprint"], **sending(load)
        ),
    }
