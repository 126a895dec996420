"""The engine: a loop over scheduler, runner and copy engine, the same for execution and simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any, Protocol

from fgengine.clock import Clock, WallClock
from fgengine.config import EngineConfig
from fgengine.kv.transfer import CopyEngine
from fgengine.plan import StepPlan, StepResult, TokenEvent
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.refusal import QueueFull, QueueTimeout, RequestRefused
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.stats import stats_of
from fgengine.work import StepTimer, Work

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
        self.overlap = overlap
        self.work = Work()
        self._started = clock.now()
        self._timer = StepTimer(self.work, clock)
        self._running: tuple[StepPlan, Collect] | None = None
        """Launched, its result not taken in yet."""
        self._ids = count()

    @classmethod
    def from_config(cls, config: EngineConfig, report: Callable[[str], None] = lambda line: None) -> Engine:
        """Load the model, size the pools and, where the policy needs one, find or measure a profile.

        ``report`` is told each slow step in a sentence. Raises ValueError for a model, policy or profile
        that cannot be used.
        """
        from fgengine.startup import load_runner, make_scheduler  # imports torch

        runner = load_runner(config, report)
        return cls(
            make_scheduler(config, runner, report),
            runner,
            runner.copies,
            WallClock(),
            model_name=config.model,
            policy_name=config.policy,
            vocab_size=runner.shape.vocab_size,
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
        self._timer.begin()
        self.scheduler.copied(self.copies.done())
        plan = self.scheduler.schedule(self.clock.now())
        # Before the step is launched: copies wait for the steps before it, not for itself. Uploads go first:
        # requests at the front of the order wait for them, and for no offload of this plan.
        for transfer in (*plan.uploads, *plan.offloads):
            self.copies.submit(transfer)
        launched = due = (plan, self.runner.launch(plan)) if plan.items else None
        if self.overlap:
            due, self._running = self._running, launched
        if due:
            return self._take_in(*due)
        if not launched:
            self._wait_for_copies()
        return []

    def _take_in(self, plan: StepPlan, collect: Collect) -> list[TokenEvent]:
        result = collect()
        events = self.scheduler.update(result, self.clock.now())
        self._timer.step_ended(plan, result.seconds, more=self.scheduler.has_work)
        return events

    def _wait_for_copies(self) -> None:
        """Nothing can run before the next copy is done."""
        if self.scheduler.kv.transfers_in_flight:
            waits_from = self.clock.now()
            self.scheduler.copied(self.copies.wait())
            self._timer.wait_ended(waits_from, more=self.scheduler.has_work)
        elif self.scheduler.has_work:
            raise RuntimeError(
                "the scheduler is stuck: there is work, yet nothing runs and nothing is copied"
            )
        else:
            self._timer.idle()

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
        """Counters and work since the start, the state of requests and pools now, and what is served how.

        Plain JSON; its cost does not grow with the number of requests.
        """
        return {
            **stats_of(self.scheduler),
            **asdict(self.work),
            "model": self.model_name,
            "policy": self.policy_name,
            "uptime_seconds": self.clock.now() - self._started,
        }

    def close(self) -> None:
        self.copies.close()
        self.scheduler.close()
