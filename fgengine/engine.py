"""The engine: it runs the scheduler, the runner and the copy engine step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any, Protocol

from fgengine.clock import Clock, WallClock
from fgengine.config import EngineConfig
from fgengine.extras import MissingPackage
from fgengine.grammar import Grammar
from fgengine.kv.transfer import CopyEngine
from fgengine.matching import GrammarError, Grammars, Matcher
from fgengine.plan import StepPlan, StepResult, TokenEvent
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.refusal import (
    QueueFull,
    QueueTimeout,
    RequestRefused,
    check_leaves_a_token,
    check_needs_no_logits,
)
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.stats import stats_of
from fgengine.speed import TYPICAL_PROMPT
from fgengine.work import StepTimer, Work

__all__ = ["Engine", "QueueFull", "QueueTimeout", "RequestRefused", "Runner", "TokenEvent"]


Collect = Callable[[], StepResult]
"""A function that waits until a launched step has ended and returns its result."""


class Runner(Protocol):
    """The interface of a runner: it executes steps."""

    def launch(self, plan: StepPlan) -> Collect:
        """Begin a step, which runs after the steps launched before.

        If it needs tokens that those steps compute, the runner takes them from there.
        """
        ...


class Engine:
    """An LLM inference engine that serves requests step by step.

        engine = Engine.from_config(EngineConfig(model="smollm2-135m", policy="sj-mlfq"))
        (request,) = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=8))
        print(request.tokens[request.prompt_len:], request.finish_reason)
        engine.close()

    Instead of ``generate``, a server calls ``add`` for each new request, and ``step`` while ``has_work``.

    The engine is not thread-safe: one thread must make all calls. The same class runs real steps and, with a
    simulated runner and clock, simulated ones.
    """

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
        analytic_device: str = "",
        grammars: Grammars | None = None,
    ) -> None:
        """Assemble an engine from its parts; ``from_config`` is the usual way.

        Args:
            model_name: reported by ``stats``.
            policy_name: reported by ``stats``.
            vocab_size: prompts may contain the token ids 0 .. vocab_size - 1.
            overlap: whether to plan and launch a step while the last one still runs, and then process the
                last one's tokens. This needs a runner whose ``launch`` returns immediately. Policies get the
                time of each step one step later. A request that arrives during a step also waits for the
                step that is launched already.
            analytic_device: reported by ``stats``: name of a device whose step times are computed from
                published figures; empty for a real device.
            grammars: compiles the grammars of requests; None: such requests are refused.
        """
        self.scheduler = scheduler
        self.runner = runner
        self.copies = copies
        self.clock = clock
        self.model_name = model_name
        self.policy_name = policy_name
        self.vocab_size = vocab_size
        self.overlap = overlap
        self.analytic_device = analytic_device
        self.grammars = grammars
        self.work = Work()
        self._started = clock.now()
        self._timer = StepTimer(self.work, clock)
        self._running: tuple[StepPlan, Collect] | None = None
        """The launched step whose result is not processed yet."""
        self._ids = count()
        self._with_grammar: dict[str, Request] = {}
        """Requests with a grammar, with some that have ended."""

    @classmethod
    def from_config(cls, config: EngineConfig, report: Callable[[str], None] = lambda line: None) -> Engine:
        """Create an engine: load the model, size the KV pools and, if needed, find or measure a profile.

        With ``device_spec``, nothing is loaded: steps take as long as that device's analytic profile says.

        Args:
            config: the settings.
            report: gets a message before each slow step.

        Raises ValueError if the model, policy or profile cannot be used.
        """
        if config.device_spec is not None:
            return cls._emulated(config, report)
        from fgengine.model.store import tokenizer_of
        from fgengine.model.tokenizer_files import open_tokenizer
        from fgengine.startup import load_runner, make_scheduler  # imports torch

        runner = load_runner(config, report)
        grammars = Grammars(
            lambda: open_tokenizer(tokenizer_of(config), config.model),
            vocab_size=runner.shape.vocab_size,
            eos_token_ids=runner.shape.eos_token_ids,
        )
        return cls(
            make_scheduler(config, runner, report),
            runner,
            runner.copies,
            WallClock(),
            model_name=config.model,
            policy_name=config.policy,
            vocab_size=runner.shape.vocab_size,
            overlap=runner.device.type == "cuda",
            grammars=grammars,
        )

    @classmethod
    def _emulated(cls, config: EngineConfig, report: Callable[[str], None]) -> Engine:
        from fgengine.emulation import emulated_parts

        parts = emulated_parts(config, report)
        return cls(
            parts.scheduler,
            parts.runner,
            parts.copies,
            parts.clock,
            model_name=config.model,
            policy_name=config.policy,
            vocab_size=parts.vocab_size,
            overlap=True,  # as on a GPU
            analytic_device=parts.device,
        )

    @property
    def room(self) -> int | None:
        """Number of requests that it takes at once while it has none; None: any number."""
        waiting = self.scheduler.queue.limit.requests
        return None if waiting is None else self.scheduler.max_batch_size + waiting

    @property
    def longest_step(self) -> float:
        """Seconds that a step may take: those of a full batch of prompt tokens; 0: not known.

        The estimate is careful, because it counts each token with its share of a typical request's decodes.
        """
        seconds = self.scheduler.queue.limit.seconds_per_request or 0.0
        return seconds / TYPICAL_PROMPT * self.scheduler.limits.max_tokens_per_batch

    @property
    def max_model_len(self) -> int:
        """Maximum prompt and output tokens of a request, limited by the settings and the device pool."""
        kv = self.scheduler.kv
        pool = kv.device.num_blocks * kv.block_size + 1  # the last token needs no KV
        return min(self.scheduler.limits.max_model_len, pool)

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has work: an unfinished request, a result to process, or a copy in flight."""
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
        """Queue a request.

        Args:
            id: a name that no other unfinished request has.
            prompt: token ids, at least one.
            user: the user who sent it, for fair policies.
            arrival: when it arrived, seconds on the engine's clock; None: now.

        Returns the request; its ``tokens`` and ``finish_reason`` change as the engine steps.

        Raises:
            RequestRefused: the request can never run; it has the reason and the field.
            QueueFull: too many requests wait.
        """
        if self.analytic_device:
            check_needs_no_logits(params)
        if not prompt:
            raise RequestRefused("the prompt is empty; it needs at least one token", "prompt")
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            raise RequestRefused(f"the prompt has token ids outside 0 .. {self.vocab_size - 1}", "prompt")
        for token, _ in params.logit_bias:
            if not 0 <= token < self.vocab_size:
                raise RequestRefused(
                    f"logit_bias has the token {token}: the model's tokens are 0 .. {self.vocab_size - 1}",
                    "logit_bias",
                )
        if params.min_tokens:
            check_leaves_a_token(params, self.scheduler.limits.eos_token_ids, self.vocab_size)
        matcher = None if params.grammar is None else self._matcher(params.grammar, len(prompt))
        now = self.clock.now()
        request = Request.new(id, prompt, params, now if arrival is None else min(arrival, now), user)
        if matcher is not None and request.adjustment is not None:
            request.adjustment.matcher = matcher
        self.scheduler.add(request, now)
        if matcher is not None:
            self._with_grammar[id] = request
        return request

    def prepare(self, params: SamplingParams) -> Callable[[], object] | None:
        """Return a job after which ``add`` need not compile the grammar; None: it need not now.

        Any thread may run it. Compiling takes milliseconds, and a second for some grammars.
        """
        grammar, grammars = params.grammar, self.grammars
        if grammar is None or grammars is None or grammars.known(grammar):
            return None
        return lambda: grammars.compile(grammar)

    def _matcher(self, grammar: Grammar, prompt_len: int) -> Matcher:
        if self.grammars is None:
            raise RequestRefused(
                f"{grammar.field} is not supported by this engine: leave it out", grammar.field
            )
        try:
            return self.grammars.matcher(grammar, prompt_len)
        except (GrammarError, MissingPackage) as error:
            raise RequestRefused(str(error), grammar.field) from None

    def abort(self, id: str) -> bool:
        """End a request and free its KV. Returns False if it is unknown or has already ended."""
        return self.scheduler.abort(id, self.clock.now()) is not None

    def expire(self) -> list[tuple[Request, QueueTimeout]]:
        """Drop the requests that have waited for their start longer than ``queue_timeout``.

        Call it between steps. Returns each dropped request with the error for its client.
        """
        now = self.clock.now()
        expired = self.scheduler.expire(now)
        return [(request, self.scheduler.queue.timeout_error(now)) for request in expired]

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a client should send a request again; None if the queue is not full."""
        queue = self.scheduler.queue
        return queue.retry_after(self.clock.now()) if queue.full else None

    def step(self) -> list[TokenEvent]:
        """Run one step and return the new tokens.

        The list is empty if the engine waited for a copy, or if it launched the first of several overlapping
        steps. After any exception the engine cannot continue.
        """
        self._timer.begin()
        if self._running is not None and self._needs_its_tokens(self._running[0]):
            running, self._running = self._running, None
            return self._process(*running)
        self.scheduler.copied(self.copies.done())
        plan = self.scheduler.schedule(self.clock.now())
        # Submit before the launch: copies wait for all steps launched before, but not for this one. Uploads
        # go first, because requests at the front of the order wait for them.
        for transfer in (*plan.uploads, *plan.offloads):
            self.copies.submit(transfer)
        launched = due = (plan, self.runner.launch(plan)) if plan.items else None
        if self.overlap:
            due, self._running = self._running, launched
        if due:
            return self._process(*due)
        if not launched:
            self._wait_for_copies()
        return []

    def _needs_its_tokens(self, running: StepPlan) -> bool:
        """Whether the next step cannot be launched before the host has the tokens of the running one.

        A grammar needs a request's newest token to say which may be next.
        """
        if not self._with_grammar:
            return False
        for id in [id for id, request in self._with_grammar.items() if request.finished]:
            del self._with_grammar[id]
        return any(item.yields_token and item.request.id in self._with_grammar for item in running.items)

    def _process(self, plan: StepPlan, collect: Collect) -> list[TokenEvent]:
        """Wait for the step's result and pass it to the scheduler."""
        result = collect()
        events = self.scheduler.update(result, self.clock.now())
        self._timer.step_ended(plan, result.seconds, more=self.scheduler.has_work)
        return events

    def _wait_for_copies(self) -> None:
        """Wait until the next copy is done, because nothing can run before."""
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
        """Serve all prompts together and return the finished requests in the order of the prompts.

            requests = engine.generate([[1, 2, 3], [4, 5]], SamplingParams(max_tokens=8))

        If the queue is full, the remaining prompts are added later. With ``queue_timeout`` set, a request may
        end with the finish reason "timeout" and no tokens.

        Raises RequestRefused if a prompt can never run.
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
        """Return the engine's statistics as plain JSON data.

        They hold counters and work since the start, the current state of requests and pools, the model and
        the policy. The cost does not depend on the number of requests.
        """
        analytic = {"analytic_device": self.analytic_device} if self.analytic_device else {}
        return {
            **stats_of(self.scheduler),
            **analytic,
            **asdict(self.work),
            "model": self.model_name,
            "policy": self.policy_name,
            "uptime_seconds": self.clock.now() - self._started,
        }

    def close(self) -> None:
        """Stop the copy engine and let the predictor save what it has learned."""
        self.copies.close()
        self.scheduler.close()
