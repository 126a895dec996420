"""fgbench from Python: measure a backend, simulate one, and read the results as pandas DataFrames.

    import fgbench

    run = fgbench.run_benchmark("fastgen-fcfs", rate=2.5, num_prompts=150)
    requests = fgbench.load_runs(run.path)              # one row per request
    runs = fgbench.runs("results")                      # one row per run
    figures = fgbench.compare("results")                # one row per figure

``run_benchmark`` and ``simulate`` take the options of the command line, with underscores.

The other functions take run folders, and folders that contain runs, such as a sweep folder. Without a path
they read ``results`` in the working directory. A run with a damaged file is left out, with a ``UserWarning``
that names the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from fgbench.results.run import Run

__all__ = ["__version__", "compare", "load_runs", "run_benchmark", "runs", "simulate"]

# Each function imports what it needs when it is called, so that the command line does not wait for pandas.


def run_benchmark(
    backend: str | None = None, *, url: str | None = None, name: str | None = None, **options: Any
) -> Run:
    """Measure a backend under a load, as ``fgbench run`` does, and return the run.

    Args:
        backend: As for ``fgbench run --backend``: ``fastgen``, ``fastgen-POLICY``, ``simulated``,
            ``simulated-POLICY``, ``vllm``, ``vllm-chunked``, ``NAME=command: COMMAND`` or
            ``NAME=BACKEND``. With ``url`` it is the name that tables give the server.
        url: Of a running OpenAI-compatible server, which is measured instead of starting one.
        name: Name in tables. None: the backend, or the host and port of ``url``.
        options: The options of ``fgbench run`` (docs/cli.md) with underscores: ``rate`` (requests per
            second), ``num_prompts``, ``seed``, ``dataset``, ``results``, ``model``, ``max_batch_size``, ...

    Returns:
        The run: ``path`` is its folder, ``status`` is ``complete``, ``failed`` or ``interrupted``, ``info``
        is its run.json, and ``records`` are the requests in the order in which they ended.

    Raises:
        ValueError: a value is out of bounds, or options contradict each other.
        TypeError: there is no such option.
        RuntimeError: the server did not get ready, or answered no warm-up request.
        ModuleNotFoundError: the backend needs an extra that is not installed.

    Example: two policies under the same load.

        for policy in ("fcfs", "sj-mlfq"):
            fgbench.run_benchmark(policy=policy, rate=2.5, num_prompts=150, model="smollm2-135m")
        fgbench.compare()
    """
    from fgbench.backends.named import backend_of
    from fgbench.benchmark import measure
    from fgbench.cli.run import spec_of
    from fgbench.spec.client import ClientSpec
    from fgbench.spec.load import LoadSpec
    from fgbench.spec.start import StartSpec
    from fgengine.config import EngineConfig
    from fgengine.settings import split

    load, client, server, start = split(options, LoadSpec, ClientSpec, EngineConfig, StartSpec)
    spec = spec_of(backend, url, name, server, start, options)
    return measure(
        backend_of(spec, access=client.access),
        load,
        client,
        spec.server,
        options=spec.repeating_options(load, client),
    )


def simulate(*, replicas: int = 1, router: str = "round-robin", **options: Any) -> Run:
    """Simulate the engine on a virtual clock, as ``fgbench simulate`` does, and return the run.

    Step times come from a profile: ``profile``, else the newest profile of the model in the cache.

    Args:
        replicas: Number of copies of the engine.
        router: How requests are divided between them: ``round-robin``, ``least-loaded``,
            ``shortest-queue`` or ``power-of-two``.
        options: The options of ``fgbench simulate`` (docs/cli.md) with underscores.

    Returns, Raises: As ``run_benchmark``.

    Example: the mean normalized latency of two policies on eight replicas, in seconds per token.

        for policy in ("fcfs", "sj-mlfq"):
            run = fgbench.simulate(policy=policy, replicas=8, rate=16, profile="profile.json")
            print(policy, fgbench.load_runs(run.path)["normalized_latency"].mean())
    """
    from fgbench.backends.named import backend_of
    from fgbench.benchmark import measure
    from fgbench.spec.backend import SIMULATED, BackendSpec
    from fgbench.spec.client import ClientSpec
    from fgbench.spec.files import options_of
    from fgbench.spec.load import LoadSpec
    from fgengine.config import EngineConfig
    from fgengine.settings import split

    load, server = split(options, LoadSpec, EngineConfig)
    spec = BackendSpec(name=SIMULATED, server=server)
    repeating = options_of(load, server) | {"replicas": replicas, "router": router}
    del repeating["results"]
    return measure(
        backend_of(spec, replicas=replicas, router=router), load, ClientSpec(), server, options=repeating
    )


def load_runs(*paths: str | Path) -> pd.DataFrame:
    """Return one row per request, ordered by run and then by position in the workload.

    Columns:
        ``run, path, status, backend, policy, model, dataset, arrivals, rate, concurrency, seed``: describe
            the run. They are categoricals; the last three are ordered. ``rate`` is in requests per second; it
            is ``inf`` if all requests are sent at once, and in a closed loop. ``concurrency`` is set only in
            a closed loop.
        ``index, scheduled, sent, prompt_tokens, asked_tokens, output_tokens, first_token, last_token,
            token_times, finished, error, user, rejected``: describe the request, see results/README.md. Times
            are seconds from the start of the load.
        ``ok``: whether the request was answered in full.
        ``trimmed``: whether the figures of the run leave the request out.
        ``normalized_latency, jct, ttft, tpot, lag, ...``: the metrics of requests in docs/metrics.md, in
            seconds or seconds per token. Latencies are missing if ``ok`` is false.
        ``server_queued, server_swapped, server_prefill, server_decode`` (seconds), ``server_preemptions``,
            ``server_bytes_moved``: reported by the server; missing if it reports none.

    Raises:
        ValueError: a path is neither a run folder nor a folder of runs.

    Example: the mean latency per token of each backend at each rate.

        requests = fgbench.load_runs("results/20261123-081059_sweep")
        requests.groupby(["rate", "backend"], observed=True)["normalized_latency"].mean().unstack()
    """
    from fgbench.results import frames

    reasons: list[str] = []
    frame = frames.load_runs(paths or ("results",), reasons.append)
    _warn([f"Left out: {reason}" for reason in reasons])
    return frame


def runs(*paths: str | Path) -> pd.DataFrame:
    """Return one row per run, with the columns of the table ``runs`` of ``fgbench results sql``.

    results/README.md describes the columns: the settings of the run (``backend``, ``rate``, ``seed``,
    ``settings`` as JSON, ...) and its figures (``request_throughput``, ``ttft_mean``, ``jct_p99``, ...) in
    seconds, tokens and requests per second. ``started`` and ``ended`` are times in UTC. If a run was killed,
    its figures cover only the requests that had ended.

    Raises:
        ValueError: a path is neither a run folder nor a folder of runs.

    Example: the complete runs, slowest first.

        runs = fgbench.runs("results")
        runs[runs["status"] == "complete"].sort_values("jct_mean", ascending=False)[["run", "jct_mean"]]
    """
    from fgbench.results import frames

    reasons: list[str] = []
    frame = frames.runs(paths or ("results",), reasons.append)
    _warn([f"Left out: {reason}" for reason in reasons])
    return frame


def compare(
    *paths: str | Path,
    baseline: str | None = None,
    slo: str | Sequence[str] = (),
    profile: str | Path | None = None,
) -> pd.DataFrame:
    """Compare backends: return one row per figure, backend and load, the rows of ``fgbench compare --csv``.

    Columns:
        ``model, dataset, num_prompts, arrivals``: the workload. Only runs of the same workload are compared.
        ``baseline``: the backend that the others are compared with.
        ``label, rate`` (requests per second) or ``concurrency``: the backend and the load.
        ``seeds``: number of runs averaged in the figure.
        ``complete, overloaded, disturbed, cached``: status of those runs.
        ``analytic_device``: the device whose step times were computed from published figures, if any.
        ``metric, statistic, value``: the figure. docs/metrics.md describes the metrics; units are seconds,
            seconds per token, requests or tokens per second, bytes, and shares of 1.
        ``low, high``: the figure's interval over seeds, if there are three seeds or more.
        ``ratio, ratio_low, ratio_high, verdict``: the figure over the baseline's under the same load, paired
            by seed. The verdict is ``better``, ``worse``, ``not distinguishable``, or the reason why there is
            none.

    Args:
        paths: Run folders, or folders of runs. If a folder holds several runs of the same settings, only the
            newest counts. Without a path: the newest runs in ``results`` that share one workload.
        baseline: A backend's name or a run folder. None: ``fastgen-fcfs`` if it is among the runs, else the
            first run's backend.
        slo: Service-level objectives, such as ``"p95 jct<20"``. Default: the FastServe paper's.
        profile: Profile of the model. Slowdown and fairness need it; without it they are left out.

    Raises:
        ValueError: a path holds no runs, no run is called ``baseline``, or ``slo`` bounds no latency.

    Example: the ratio of each backend's mean latency per token to the baseline's.

        figures = fgbench.compare("results/20261123-081059_sweep")
        figures.query("metric == 'normalized_latency' and statistic == 'mean'").pivot(
            index="rate", columns="label", values="ratio"
        )
    """
    from fgbench.metrics.slo import DEFAULT_SLO, parse_slo
    from fgbench.report import chosen_runs, comparison
    from fgbench.report.comparison_data import comparison_frame
    from fgbench.report.objectives import Objective

    slos = [parse_slo(text) for text in ([slo] if isinstance(slo, str) else slo or [DEFAULT_SLO])]
    warned: list[str] = []
    chosen = (
        chosen_runs.named_runs([Path(path) for path in paths], warned.append)
        if paths
        else chosen_runs.newest_runs(Path("results"), warned.append)
    )
    cost_of = chosen_runs.cost_models(Path(profile), chosen, warned.append) if profile else lambda model: None
    comparisons = comparison.compare(chosen, baseline, cost_of)
    _warn(warned)
    return comparison_frame((each, [Objective(one, each) for one in slos]) for each in comparisons)


def _warn(sentences: Sequence[str]) -> None:
    """Issue a UserWarning for each sentence; it points to the line that called the public function."""
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("fgbench")
    raise AttributeError(f"module 'fgbench' has no attribute {name!r}")
