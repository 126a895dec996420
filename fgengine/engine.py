"""The engine: a loop over scheduler, runner and copy engine, the same for execution and simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any, Protocol

from fgengine.clock import Clock, WallClock
from fgengine.config import EngineConfig
from fgengine.kv.manager import KVManager
from fgengine.kv.transfer import CopyEngine
from fgengine.plan import StepPlan, StepResult, TokenEvent
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.draft import Limits
from fgengine.scheduling.policy import PolicyContext, make_policy, policy_class
from fgengine.scheduling.predictor import Predictor
from fgengine.scheduling.queue_limit import QueueLimit
from fgengine.scheduling.refusal import QueueFull, QueueTimeout, RequestRefused
from fgengine.scheduling.scheduler import Scheduler
from fgengine.work import Work

__all__ = ["Engine", "QueueFull", "QueueTimeout", "RequestRefused", "Runner", "TokenEvent"]


Collect = Callable[[], StepResult]
"""Waits for a launched step to end, and gives what it computed."""


class Runner(Protocol):
    def launch(self, plan: StepPlan) -> Collect:
        """Begins a step behind those launched before; what it needs of their tokens it has by itself."""
        ...


class Engine:
    """Serves requests step by step. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        copies: CopyEngine,
        clock: Clock,
        *,
        model_name: str = "",
        policy_name: str = "",
        vocab_size: int = 2**31,
        predictor: Predictor | None = None,
        overlap: bool = False,
    ) -> None:
        """``overlap``: plan and launch a step while the one before still runs, then take in its tokens.

        For runners whose ``launch`` returns at once. Policies learn each step's time one step later, and a
        request that comes while a step runs waits for the one launched behind it, too.
        """
        self.scheduler = scheduler
        self.runner = runner
        self.copies = copies
        self.clock = clock
        self.model_name = model_name
        self.policy_name = policy_name
        self.vocab_size = vocab_size
        self.predictor = predictor
        self.overlap = overlap
        self.work = Work()
        self._started = clock.now()
        self._left_at: float | None = None
        """When the last step or wait for a copy ended, if there was more to do; where none has yet, when the
        first step began."""
        self._running: tuple[StepPlan, Collect] | None = None
        """Launched, its result not taken in yet."""
        self._ids = count()

    @classmethod
    def from_config(cls, config: EngineConfig, report: Callable[[str], None] = lambda line: None) -> Engine:
        """Load the model, size the pools and, where the policy needs one, find or measure a profile.

        ``report`` is told each slow step in a sentence. Raises ValueError for a model, policy or profile
        that cannot be used.
        """
        from fgengine import profile_cache, quick_speed
        from fgengine.execution.create import create_runner
        from fgengine.execution.machine import require_memory
        from fgengine.model import catalog, store
        from fgengine.scheduling.predictors import make_predictor

        policy = policy_class(config.policy)  # a misspelt name should not cost a model load
        shape = catalog.shape_of(config.model)
        folder = None if config.use_dummy_weights else store.folder_of(config.model)
        if folder is None and not config.use_dummy_weights:
            require_memory(config, shape)  # before anybody downloads what could not be loaded
            raise ValueError(
                f"the weights of {config.model} are not here: pull them with `fgbench models pull "
                f"{config.model}`, or ask for dummy weights"
            )
        report(f"loading {config.model}")
        runner = create_runner(config, shape, folder, report)
        needs_cost = policy.needs_cost or config.offloading == "auto"
        cost = profile_cache.ensure(config, runner, report).cost if needs_cost else None
        predictor = make_predictor(config.predictor, config.model) if policy.needs_predictor else None
        queue = QueueLimit.of(config, lambda: quick_speed.speed_of(config, runner, cost, report))
        report(queue.describe())
        context = PolicyContext(cost, config.starvation_limit, config.max_batch_size, predictor)
        scheduler = Scheduler(
            make_policy(config.policy, context),
            KVManager(runner.num_device_blocks, runner.num_host_blocks, config.block_size),
            Limits(
                max_batch_size=config.max_batch_size,
                max_tokens_per_batch=config.max_tokens_per_batch,
                chunked_prefill=config.chunked_prefill,
                max_model_len=runner.max_model_len,
                eos_token_ids=frozenset(shape.eos_token_ids),
                block_bytes=runner.block_bytes,
            ),
            offloading=config.offloading,
            cost=cost,
            queue=queue,
        )
        return cls(
            scheduler,
            runner,
            runner.copies,
            WallClock(),
            model_name=config.model,
            policy_name=config.policy,
            vocab_size=shape.vocab_size,
            predictor=predictor,
            overlap=runner.device.type == "cuda",
        )

    @property
    def max_model_len(self) -> int:
        """Most tokens, prompt and output, that a request can have: by the limit, and by the device pool."""
        kv = self.scheduler.kv
        pool = kv.device.num_blocks * kv.block_size + 1  # the last token needs no KV
        return min(self.scheduler.limits.max_model_len, pool)

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has something to do: a request, a result to take in, or a copy whose blocks are
        still to be freed."""
        return (
            self.scheduler.has_work or self._running is not None or self.scheduler.kv.transfers_in_flight > 0
        )

    def add(
        self,
        id: str,
        prompt: list[int],
        params: SamplingParams,
        *,
        user: str = "",
        arrival: float | None = None,
    ) -> Request:
        """Queue a request that came at ``arrival`` (seconds on the engine's clock; None: now).

        Raises RequestRefused, with the reason, for one that could never run; QueueFull where too many wait.
        """
        if not prompt:
            raise RequestRefused("the prompt is empty; it needs at least one token")
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            raise RequestRefused(f"the prompt has token ids outside 0 .. {self.vocab_size - 1}")
        now = self.clock.now()
        request = Request.new(id, prompt, params, now if arrival is None else min(arrival, now), user)
        self.scheduler.add(request, now)
        return request

    def abort(self, id: str) -> bool:
        """Stop a request and free what it holds; False when it is not running (any more)."""
        return self.scheduler.abort(id, self.clock.now()) is not None

    def expire(self) -> list[tuple[Request, QueueTimeout]]:
        """Drop the requests that have waited for their start for too long: to be called between steps."""
        now = self.clock.now()
        expired = self.scheduler.expire(now)
        return [(request, self.scheduler.queue.timeout_error(now)) for request in expired]

    @property
    def retry_after(self) -> float | None:
        """While the queue is full: seconds after which a request is worth sending. None: there is room."""
        queue = self.scheduler.queue
        return queue.retry_after(self.clock.now()) if queue.full else None

    def step(self) -> list[TokenEvent]:
        """One iteration: the new tokens; none after waiting for a copy, or while the first of several
        overlapping steps runs.

        Any exception means that the engine cannot go on.
        """
        began = self.clock.now()
        left_at = began if self._left_at is None else self._left_at
        self._left_at = None
        self.scheduler.copied(self.copies.done())
        if self._running is not None:
            self.scheduler.presume()
        plan = self.scheduler.schedule(self.clock.now())
        # Before the step is launched: copies wait for the steps before it, not for itself. Uploads go first:
        # requests at the front of the order wait for them, and for no offload of this plan.
        for transfer in (*plan.uploads, *plan.offloads):
            self.copies.submit(transfer)
        launched = (plan, self.runner.launch(plan)) if plan.items else None
        if launched and not self.overlap:
            return self._take_in(*launched, left_at, began)
        running, self._running = self._running, launched
        if running:
            return self._take_in(*running, left_at, began)
        if launched:
            self._left_at = left_at
        elif self.scheduler.kv.transfers_in_flight:
            self._wait_for_copies(left_at, began)
        elif self.scheduler.has_work:
            raise RuntimeError(
                "the scheduler is stuck: there is work, yet nothing runs and nothing is copied"
            )
        return []

    def _wait_for_copies(self, left_at: float, began: float) -> None:
        """Nothing can run before the next copy is done. Charged to copies only where a request waits: blocks
        of requests that are gone are waited for as well."""
        waits = self.clock.now()
        self.work.between_seconds += began - left_at
        self.scheduler.copied(self.copies.wait())
        if self.scheduler.has_work:
            ended = self.clock.now()
            self.work.engine_seconds += waits - began
            self.work.copy_wait_seconds += ended - waits
            self._left_at = ended

    def _take_in(self, plan: StepPlan, collect: Collect, left_at: float, began: float) -> list[TokenEvent]:
        result = collect()
        events = self.scheduler.update(result, self.clock.now())
        ended = self.clock.now()
        self.work.add(plan, result.seconds, ended - began, began - left_at)
        self._left_at = ended if self.scheduler.has_work else None
        return events

    def generate(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[Request]:
        """Serve all prompts together; the finished requests, in the prompts' order.

        Those that the queue has no room for are held back until it has. With a queue timeout some may end
        with the finish reason "timeout" and no tokens.
        """
        requests: list[Request] = []
        while len(requests) < len(prompts) or not all(request.finished for request in requests):
            while len(requests) < len(prompts):
                try:
                    request = self.add(f"generate-{next(self._ids)}", prompts[len(requests)], params)
                except QueueFull:
                    break
                requests.append(request)
            self.expire()
            if self.has_work:
                self.step()
        return requests

    def stats(self) -> dict[str, Any]:
        """Counters and work since the start; requests in each place and level, and free blocks of each pool,
        now; what is served how. Plain JSON; its cost does not grow with the number of requests."""
        scheduler, kv, queue = self.scheduler, self.scheduler.kv, self.scheduler.queue
        running, swapped = scheduler.num_running, scheduler.num_swapped
        return {
            **asdict(scheduler.counters),
            **asdict(self.work),
            "running": running,
            "swapped": swapped,
            "waiting": len(scheduler.requests) - running - swapped,
            "free_device_blocks": kv.device.num_free,
            "num_device_blocks": kv.device.num_blocks,
            "free_host_blocks": kv.host_available,
            "num_host_blocks": kv.host.num_blocks,
            "transfers_in_flight": kv.transfers_in_flight,
            "under_pressure": scheduler.under_pressure,
            "queued_requests": queue.waiting,
            "max_queue": queue.limit.requests,
            "unstarted_requests": queue.unstarted,
            "unstarted_prompt_tokens": queue.prompt_tokens,
            "max_queue_tokens": queue.limit.prompt_tokens,
            "queue_timeout": queue.limit.timeout,
            "block_bytes": scheduler.limits.block_bytes,
            "max_batch_size": scheduler.limits.max_batch_size,
            "levels": [level._asdict() for level in scheduler.policy.levels()],
            "model": self.model_name,
            "policy": self.policy_name,
            "uptime_seconds": self.clock.now() - self._started,
        }

    def close(self) -> None:
        self.copies.close()
        if self.predictor is not None:
            self.predictor.close()
