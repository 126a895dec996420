"""A benchmark without a machine: copies of the engine on virtual clocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fgbench.backends.backend import Display, Keep, Outcome, ReadyServer, Report
from fgbench.backends.fastgen import backend_name, settings_of
from fgbench.metrics.record import RequestRecord
from fgbench.workload.workload import RequestSpec, Workload
from fgengine.config import EngineConfig
from fgengine.model.catalog import shape_of
from fgengine.preflight import check_names
from fgengine.profile import Profile
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.refusal import QueueFull, QueueTimeout, RequestRefused
from fgengine.simulation.cluster import Cluster
from fgengine.simulation.replica import Completion
from fgengine.simulation.setup import make_cluster, pools_in_words

if TYPE_CHECKING:
    from fgbench.spec.load import Load

PREFIX = "simulated"
MAX_REPLICAS = 4096
MAX_WITH_PROMPTS = 20_000
"""Requests up to which prompts are made, so that a simulation and a real run of one workload are known to be
comparable, and the time of each token is kept. Beyond, both would take more memory than the simulation."""


class Simulated:
    """The engine's scheduler and KV accounts, with step times from a profile."""

    url: str | None = None
    endpoint: str | None = None
    simulated = True
    most_prompts = float(MAX_WITH_PROMPTS)

    def __init__(
        self, config: EngineConfig, profile: Profile, *, replicas: int = 1, router: str = "round-robin"
    ) -> None:
        """Raises ValueError for a configuration that no server on the profile's device would start with."""
        if not 1 <= replicas <= MAX_REPLICAS:
            raise ValueError(f"--replicas must be between 1 and {MAX_REPLICAS}, not {replicas}")
        check_names(config)
        self.config = config
        self.shape = shape_of(config.model)
        self.profile = profile
        self.replicas = replicas
        self.router = router
        self.model: str | None = config.model
        self.policy: str | None = config.policy
        self.name = backend_name(PREFIX, config.policy)
        self._queue = self._cluster(seed=0, keep_token_times=False).replicas[0].scheduler.queue.limit
        self._described = False

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the engine, and whose step times and how many copies of it behind which router."""
        profile = f"{self.profile.device}, {self.profile.dtype}, {self.profile.measured}"
        cluster = {"profile": profile, "replicas": self.replicas, "router": self.router}
        return settings_of(self.config) | cluster

    def prepare(self, report: Report) -> None:
        """Nothing takes long."""

    def share(self, log: Path) -> None:
        """Nothing runs between two runs."""

    def start(self, log: Path, report: Report) -> ReadyServer:
        """Reports once what is simulated: whose step times, and what each replica's queue and pools hold."""
        if not self._described:
            report(f"step times of {self.profile.device}, {self.profile.dtype}")
            report(self._queue.describe())
            report(pools_in_words(self.config, self.shape, self.profile))
            self._described = True
        return ReadyServer("", self.config.model, self.shape.vocab_size)

    def stop(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing runs."""

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Display) -> Outcome:
        whole = load.num_prompts <= self.most_prompts
        serving = self.replay(
            workload.requests,
            seed=load.seed,
            keep_token_times=whole,
            concurrency=load.arrivals.concurrency,
            duration=load.duration,
        )
        status: Literal["complete", "interrupted"] = "complete"
        with display.simulation(self.name, load.num_prompts) as progress:
            try:
                for ended, record in enumerate(serving, 1):
                    keep(record)
                    progress(ended, record.finished or 0.0)
            except KeyboardInterrupt:
                status = "interrupted"
        if not whole:
            display.report(
                f"above {MAX_WITH_PROMPTS:,} requests the times of single tokens are not kept: no ITL, and "
                "overload is told from first and last tokens"
            )
        return Outcome(status, {"server_stats": serving.server_stats()})

    def replay(
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

    def __init__(self, cluster: Cluster, endings: Iterator[Completion]) -> None:
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
    from fgengine.profile_cache import newest_profile

    if config.profile is not None:
        return Profile.load(config.profile)
    newest = newest_profile(config.model)
    if newest is None:
        raise ValueError(
            f"a simulation takes step times from a profile, and there is none of {config.model} here: "
            "measure one with 'fgbench profile', or give one with --profile"
        )
    return newest


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


def _record(ending: Completion) -> RequestRecord:
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
