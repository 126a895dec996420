"""The backend that simulates replicas of the engine on virtual clocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fgbench.backends.backend import Display, Keep, Outcome, ReadyServer, Report
from fgbench.backends.fastgen import settings_of
from fgbench.metrics.accounts import ANALYTIC_DEVICE
from fgbench.metrics.record import RequestRecord
from fgbench.spec.backend import SIMULATED, backend_name
from fgbench.workload.workload import RequestSpec, Workload
from fgengine.analytic import profile_of
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

MAX_REPLICAS = 4096
MAX_WITH_PROMPTS = 20_000
"""Number of requests up to which prompts are made and the time of each token is saved.

The fingerprint of the prompts shows that a simulation and a real run have the same workload. For more
requests, prompts and token times would take more memory than the simulation.
"""


class Simulated:
    """Simulates the engine: its real scheduler and KV accounting, with step times from a profile."""

    url: str | None = None
    endpoint: str | None = None
    simulated = True
    max_prompts = float(MAX_WITH_PROMPTS)

    def __init__(
        self,
        config: EngineConfig,
        profile: Profile,
        *,
        replicas: int = 1,
        router: str = "round-robin",
        name: str | None = None,
    ) -> None:
        """``name``: name in tables; None: ``simulated`` or ``simulated-POLICY``.

        Raises ValueError if no server on the profile's device would start with ``config``.
        """
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
        self.name = name or backend_name(SIMULATED, config.policy)
        self._queue = self._cluster(seed=0, keep_token_times=False).replicas[0].scheduler.queue.limit
        self._described = False

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the engine, the profile, the number of replicas and the router, as plain JSON."""
        cluster: dict[str, Any] = {"profile": self.profile.describe()}
        cluster |= {"replicas": self.replicas, "router": self.router}
        if self.profile.analytic is not None:
            cluster[ANALYTIC_DEVICE] = self.profile.device
        return settings_of(self.config) | cluster

    def prepare(self, report: Report) -> None:
        """Do nothing: there are no slow preparations."""

    def share(self, log: Path) -> None:
        """Do nothing: there is no server process."""

    def start(self, log: Path, report: Report) -> ReadyServer:
        """Report, at the first call, the profile and the size of each replica's queue and pools."""
        if not self._described:
            report(step_times_of(self.profile))
            report(self._queue.describe())
            report(pools_in_words(self.config, self.shape, self.profile))
            self._described = True
        return ReadyServer("", self.config.model, self.shape.vocab_size)

    def stop(self) -> None:
        """Do nothing: there is no server process."""

    def close(self) -> None:
        """Do nothing: there is no server process."""

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Display) -> Outcome:
        """Simulate the load; pass the record of each ended request to ``keep``."""
        keep_token_times = load.num_prompts <= self.max_prompts
        serving = self.replay(
            workload.requests,
            seed=load.seed,
            keep_token_times=keep_token_times,
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
        if not keep_token_times:
            display.report(
                f"with more than {MAX_WITH_PROMPTS:,} requests, the times of single tokens are not saved: "
                "there is no ITL, and overload is detected from first and last tokens"
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
        """Simulate the requests; yield the record of each request when it ends. A refused one has an error.

        Args:
            seed: Seed of a random router.
            keep_token_times: Whether records have the time of each token.
            concurrency: Number of workers of a closed loop. They send the requests in order; each worker
                sends its next request when its last one has ended.
            duration: Seconds after which no more requests are sent.
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
    """A simulated load in progress: iterate over it to get the requests' records."""

    def __init__(self, cluster: Cluster, endings: Iterator[Completion]) -> None:
        self._cluster = cluster
        self._records = map(_record, endings)

    def __iter__(self) -> Iterator[RequestRecord]:
        return self._records

    def server_stats(self) -> dict[str, Any]:
        """Return counters before the load (zeros) and now, as for a real server, for run.json.

        Counters are sums over ``replicas``, except ``uptime_seconds``.
        """
        after = self._cluster.stats()
        return {
            "before": dict.fromkeys(after, 0.0),
            "after": after,
            "replicas": len(self._cluster.replicas),
        }


def find_profile(config: EngineConfig) -> Profile:
    """Return the profile of the file or of the device in ``config``, else the model's newest in the cache.

    Raises:
        ValueError: there is no profile of the model, or no such device.
    """
    from fgengine.profile_cache import newest_profile

    if config.device_spec is not None:
        return profile_of(config)
    if config.profile is not None:
        return Profile.load(config.profile)
    newest = newest_profile(config.model)
    if newest is None:
        raise ValueError(
            f"a simulation needs a profile, and the cache has none of {config.model}: measure one with "
            "'fgbench profile', give one with --profile, or name a device with --device-spec"
        )
    return newest


def step_times_of(profile: Profile) -> str:
    """Return where the step times come from, as a sentence."""
    if profile.analytic is None:
        return f"step times of {profile.device}, {profile.dtype}"
    return (
        f"step times of {profile.device}, {profile.dtype}, computed from published figures "
        f"({profile.analytic.spec.source}), not measured"
    )


@cache
def _params(output_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)


def _request(spec: RequestSpec) -> Request:
    """Make the engine's request. Its tokens are zeros of one byte each, because a million may wait."""
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
    """Return the text that a client records for the server's rejection; None if it is not a rejection."""
    if isinstance(refusal, QueueFull):
        return f"http 429: {refusal}"
    return f"queue timeout: {refusal}" if isinstance(refusal, QueueTimeout) else None


def _record(ending: Completion) -> RequestRecord:
    """Make the record of an ended request; times are rounded to microseconds, as the client does."""
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
