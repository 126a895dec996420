"""Makes one complete run with any backend: starts it, sends the load, summarizes and saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgbench.backends.backend import Backend, BackendError, Display, ReadyServer
from fgbench.client.endpoints import endpoint_called, wishes_of
from fgbench.live.display import Quiet
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.metrics.trimming import WHOLE
from fgbench.results.environment import environment
from fgbench.results.run import Run
from fgbench.results.writer import RunWriter
from fgbench.spec.client import ClientSpec
from fgbench.spec.files import fingerprint
from fgbench.spec.load import Load, LoadSpec
from fgbench.workload.build import build_workload
from fgbench.workload.datasets import Dataset
from fgbench.workload.workload import Workload
from fgengine.config import EngineConfig


def measure(
    backend: Backend,
    load: LoadSpec,
    client: ClientSpec,
    server: EngineConfig,
    *,
    display: Display | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Prepare the backend, make the load and run it, as ``fgbench run`` and ``fgbench simulate`` do.

    Args:
        server: its tokenizer counts the tokens of text datasets.
        options: the options of the command line that repeat the run, for its spec.toml.

    Raises:
        ValueError: the load or its dataset cannot be made.
        BackendError: the server did not become ready, or answered no warm-up request.
        KeyboardInterrupt: interrupted before the load began.
    """
    display = display or Quiet()
    built = load.to_load(client, server)
    backend.prepare(display.report)
    dataset = load.to_dataset(server, display.report)
    return execute_run(backend, dataset, built, results=load.results, display=display, options=options)


def execute_run(
    backend: Backend,
    dataset: Dataset,
    load: Load,
    *,
    results: Path,
    display: Display | None = None,
    point: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Start ``backend``, send it the load, stop it, and return the run that is saved under ``results``.

    If the load is interrupted (SIGINT, SIGTERM), or if the server dies, the run has the status
    ``interrupted`` or ``failed``. It then holds all requests that had ended.

    Args:
        point: the point of the sweep, for run.json.
        options: the options of ``fgbench run`` that repeat the run, for its spec.toml.

    Raises:
        ValueError: the workload cannot be made.
        BackendError: the server did not become ready, or answered no warm-up request.
        KeyboardInterrupt: interrupted before the load began; the run folder records this.
    """
    display = display or Quiet()
    _check_first_request(backend, dataset, load)
    records: list[RequestRecord] = []
    with RunWriter(results, _first_info(backend, dataset, load) | {"point": point}, options) as writer:

        def save(record: RequestRecord) -> None:
            try:
                writer.append(record)
            except OSError as error:
                raise BackendError(
                    f"the run's folder {writer.path} cannot be written ({error.strerror}): the run stopped "
                    f"after {len(records)} requests, which are saved. Free some space, and run it again"
                ) from None
            records.append(record)

        try:
            ready = backend.start(writer.log_path, display.report)
            workload = workload_of(
                dataset,
                load,
                num_warmup=0 if backend.simulated else load.num_warmup,
                vocab_size=ready.vocab_size,
                max_prompts=backend.max_prompts,
            )
            _check_lengths(workload, ready.max_tokens)
            writer.describe(**_full_info(backend, ready, workload, load))
            outcome = backend.serve(workload, load, save, display)
            summary = summarize(records, offered_rate=load.offered_rate, trim=load.trim)
            if problem := writer.finish(outcome.status, records, summary.to_dict(), **outcome.facts):
                display.report(problem)
        finally:
            backend.stop()
    return Run(writer.path, writer.info, tuple(records))


def workload_of(
    dataset: Dataset, load: Load, *, num_warmup: int, vocab_size: int | None, max_prompts: float
) -> Workload:
    """Return the workload of a load. Raises ValueError if it cannot be made.

    Args:
        num_warmup: Number of warm-up requests.
        vocab_size: Number of tokens in the vocabulary; None: not known.
        max_prompts: Number of requests above which no prompts are made.
    """
    return build_workload(
        dataset,
        rate=load.rate,
        num_prompts=load.num_prompts,
        seed=load.seed,
        num_warmup=num_warmup,
        vocab_size=vocab_size,
        with_prompts=load.num_prompts <= max_prompts,
        users=load.users,
        arrivals=load.arrivals,
        num_words=len(load.words),
        natural_lengths=load.natural_lengths,
        think_time=load.think_time,
    )


def _check_first_request(backend: Backend, dataset: Dataset, load: Load) -> None:
    """Raise ValueError if requests cannot be made, before a model is loaded."""
    (request,) = build_workload(dataset, rate=math.inf, num_prompts=1, num_words=len(load.words)).requests
    if backend.simulated:
        return
    if load.words and isinstance(request.prompt, str):
        raise ValueError(
            f"--send-text is for datasets of lengths, and {dataset.name} has texts, which are sent anyway: "
            "leave it out"
        )
    endpoint_called(load.endpoint or backend.endpoint or "completions", wishes_of(load)).body(request, "")


def _check_lengths(workload: Workload, max_tokens: int | None) -> None:
    """Raise BackendError if a request has more prompt and output tokens than the server takes."""
    if max_tokens is None:
        return
    longer = sum(r.prompt_tokens + r.output_tokens > max_tokens for r in workload.requests)
    if longer:
        raise BackendError(
            f"{longer} of {workload.num_prompts} requests have more than the {max_tokens} tokens that the "
            f"server takes: leave them out with --max-total-len {max_tokens}, or shorten them with --clip too"
        )


def _first_info(backend: Backend, dataset: Dataset, load: Load) -> dict[str, Any]:
    """Return the part of run.json that is known before the server runs. The folder is named after it."""
    return {
        "backend": _described(backend, load) | {"url": None},
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
        "duration_limit_s": load.duration if math.isfinite(load.duration) else None,
        "max_concurrency": load.max_concurrency,
        "trim": None if load.trim == WHOLE else load.trim.to_json(),
        "fingerprint": None,
        "environment": environment(),
    }


def _full_info(backend: Backend, ready: ReadyServer, workload: Workload, load: Load) -> dict[str, Any]:
    """Return the part of run.json that is known when the server is ready."""
    sent = workload.describe()
    model = ready.shown_model or ready.model or backend.model
    identity = _described(backend, load)
    if backend.simulated:
        del identity["endpoint"]
    limits = {} if math.isinf(load.duration) else {"duration": load.duration}
    limits |= {} if load.max_concurrency is None else {"max_concurrency": load.max_concurrency}
    info = {
        "backend": _described(backend, load) | {"url": ready.url or None},
        "model": model,
        "workload": sent,
        "warmup": len(workload.warmup),
        "request_timeout_s": load.request_timeout,
        "fingerprint": fingerprint(backend=identity, model=model, workload=sent["fingerprint"], **limits),
    }
    if ready.started is not None:
        info["server"] = dict(ready.started)
    if backend.simulated:
        del info["request_timeout_s"]
        info["token_times"] = load.num_prompts <= backend.max_prompts
    return info


def _described(backend: Backend, load: Load) -> dict[str, Any]:
    return {
        "name": backend.name,
        "policy": backend.policy,
        "endpoint": None if backend.simulated else load.endpoint or backend.endpoint,
        **({"extra_body": dict(load.extra_body)} if load.extra_body else {}),
        "settings": backend.settings,
    }
