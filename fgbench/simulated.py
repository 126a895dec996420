"""A benchmark run without a machine: copies of the engine on virtual clocks, into the same run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fgbench.backends.fastgen import DEFAULT_POLICY, SIMULATED, settings_of
from fgbench.benchmark import Load, limits, sending
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.results.environment import environment
from fgbench.results.fingerprint import fingerprint
from fgbench.results.run import Run
from fgbench.results.writer import RunWriter
from fgbench.workload.build import build_workload
from fgbench.workload.datasets import Dataset
from fgbench.workload.spec import RequestSpec, Workload
from fgengine.config import EngineConfig
from fgengine.model.catalog import shape_of
from fgengine.preflight import check_names
from fgengine.profile import Profile
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.refusal import QueueFull, QueueTimeout, RequestRefused
from fgengine.simulation.cluster import Cluster
from fgengine.simulation.replica import Ending
from fgengine.simulation.setup import make_cluster, pools_in_words

MOST_REPLICAS = 4096
MOST_WITH_PROMPTS = 20_000
"""Requests up to which prompts are made, so that a simulation and a real run of one workload are known to be
comparable, and the time of each token is kept. Beyond, both would take more memory than the simulation."""

Progress = Callable[[int, float], None]
"""Told how many requests have ended, and the simulated seconds."""


class Simulation:
    """What a backend is to a real run: a name, settings, and something that serves requests."""

    def __init__(
        self, config: EngineConfig, profile: Profile, *, replicas: int = 1, router: str = "round-robin"
    ) -> None:
        """Raises ValueError for a configuration that no server on the profile's device would start with."""
        if not 1 <= replicas <= MOST_REPLICAS:
            raise ValueError(f"--replicas must be between 1 and {MOST_REPLICAS}, not {replicas}")
        check_names(config)
        self.config = config
        self.shape = shape_of(config.model)
        self.profile = profile
        self.replicas = replicas
        self.router = router
        self.model = config.model
        self.policy = config.policy
        self.name = SIMULATED if self.policy == DEFAULT_POLICY else f"{SIMULATED}-{self.policy}"
        self.queue = self._cluster(seed=0, keep_token_times=False).replicas[0].scheduler.queue.limit
        """Of each replica."""

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the engine, and whose step times and how many copies of it behind which router."""
        profile = f"{self.profile.device}, {self.profile.dtype}, {self.profile.measured}"
        cluster = {"profile": profile, "replicas": self.replicas, "router": self.router}
        return settings_of(self.config) | cluster

    @property
    def pools(self) -> str:
        """What each copy's KV pools hold, in a line."""
        return pools_in_words(self.config, self.shape, self.profile)

    def serve(
        self,
        requests: Iterable[RequestSpec],
        *,
        seed: int = 0,
        keep_token_times: bool = True,
        concurrency: int | None = None,
        duration: float = math.inf,
    ) -> Serving:
        """The record of each request as it ends; a refused one is an error. ``seed``: of a random router.

        With ``concurrency`` so many workers send the requests in their order, each as its last one ends.
        Nothing is sent ``duration`` seconds after the start or later.
        """
        cluster = self._cluster(seed, keep_token_times)
        if concurrency is not None:
            ended = cluster.serve_closed(map(_request, requests), concurrency, duration)
        else:
            ended = cluster.serve(_request(spec) for spec in requests if spec.scheduled < duration)
        return Serving(cluster, ended)

    def _cluster(self, seed: int, keep_token_times: bool) -> Cluster:
        return make_cluster(
            self.config,
            self.shape,
            self.profile,
            replicas=self.replicas,
            router=self.router,
            seed=seed,
            keep_token_times=keep_token_times,
        )


class Serving:
    """A load being served: an iterator of the requests' records."""

    def __init__(self, cluster: Cluster, endings: Iterator[Ending]) -> None:
        self._cluster = cluster
        self._records = map(_record, endings)

    def __iter__(self) -> Iterator[RequestRecord]:
        return self._records

    def server_stats(self) -> dict[str, Any]:
        """For run.json, as a real server's: counters before the load, which are zeros, and now. They are sums
        over ``replicas``, but for ``uptime_seconds``."""
        after = self._cluster.stats()
        return {
            "before": dict.fromkeys(after, 0.0),
            "after": after,
            "replicas": len(self._cluster.replicas),
        }


def find_profile(config: EngineConfig) -> Profile:
    """The one asked for, else the newest in the cache.

    Raises:
        ValueError: there is none.
    """
    from fgengine.profile_cache import profiles_of

    if config.profile is not None:
        return Profile.load(config.profile)
    profiles = [Profile.load(path) for path in profiles_of(config.model)]
    if not profiles:
        raise ValueError(
            f"a simulation takes step times from a profile, and there is none of {config.model} here: "
            "measure one with 'fgbench profile', or give one with --profile"
        )
    return max(profiles, key=lambda profile: profile.measured)


def run_simulation(
    simulation: Simulation,
    dataset: Dataset,
    load: Load,
    *,
    results: Path,
    progress: Progress = lambda ended, seconds: None,
    point: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Serve the load on virtual clocks; the run as it lies under ``results``. ``point`` is the sweep's, and
    ``options`` are those that repeat the run.

    Interrupted (SIGINT) it gives a run too, of status ``interrupted``, with all requests that had ended.

    Raises:
        ValueError: the workload cannot be made.
    """
    whole = load.num_prompts <= MOST_WITH_PROMPTS
    workload = build_workload(
        dataset,
        rate=load.rate,
        num_prompts=load.num_prompts,
        seed=load.seed,
        vocab_size=simulation.shape.vocab_size,
        users=load.users,
        arrivals=load.arrivals,
        with_prompts=whole,
    )
    records: list[RequestRecord] = []
    status = "complete"
    info = _info(simulation, workload, load, token_times=whole) | {"point": point}
    with RunWriter(results, info, options) as writer:
        serving = simulation.serve(
            workload.requests,
            seed=load.seed,
            keep_token_times=whole,
            concurrency=load.arrivals.concurrency,
            duration=load.duration,
        )
        try:
            for record in serving:
                records.append(record)
                writer.append(record)
                progress(len(records), record.finished or 0.0)
        except KeyboardInterrupt:
            status = "interrupted"
        summary = summarize(records, offered_rate=load.offered_rate, trim=load.trim)
        writer.finish(status, records, summary.to_dict(), server_stats=serving.server_stats())
    return Run(writer.path, writer.info, tuple(records))


def _info(simulation: Simulation, workload: Workload, load: Load, token_times: bool) -> dict[str, Any]:
    described = workload.describe()
    backend = {"name": simulation.name, "policy": simulation.policy, "settings": simulation.settings}
    return {
        "backend": {**backend, "url": None, "endpoint": None},
        "model": simulation.model,
        "workload": described,
        "warmup": 0,
        "token_times": token_times,
        **limits(load),
        "fingerprint": fingerprint(
            backend=backend, model=simulation.model, workload=described["fingerprint"], **sending(load)
        ),
        "environment": environment(),
    }


@cache
def _params(output_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)


def _request(spec: RequestSpec) -> Request:
    """Its tokens are zeros, a byte each: a million may wait."""
    return Request(
        id=str(spec.index),
        prompt_len=spec.prompt_tokens,
        params=_params(spec.output_tokens),
        arrival=spec.scheduled,
        tokens=bytearray(spec.prompt_tokens),
        user=spec.user,
        phase_since=spec.scheduled,
    )


def _rejection(refusal: RequestRefused | None) -> str | None:
    """As a client would write down the server's answer."""
    if isinstance(refusal, QueueFull):
        return f"http 429: {refusal}"
    return f"queue timeout: {refusal}" if isinstance(refusal, QueueTimeout) else None


def _record(ending: Ending) -> RequestRecord:
    """Times to the microsecond, as a client rounds them."""
    request = ending.request
    finished = round(request.phase_since, 6)
    first = request.first_token_at
    rejected = _rejection(ending.refusal)
    return RequestRecord(
        index=int(request.id),
        scheduled=request.arrival,
        sent=request.arrival,
        prompt_tokens=request.prompt_len,
        asked_tokens=request.params.max_tokens,
        output_tokens=request.num_generated,
        first_token=None if first is None else round(first, 6),
        last_token=None if first is None else finished,
        token_times=tuple(round(at, 6) for at in ending.token_times),
        finished=finished,
        error=None if rejected or ending.refusal is None else f"refused: {ending.refusal}",
        server=request.accounting() if ending.refusal is None else None,
        user=request.user,
        rejected=rejected,
    )
