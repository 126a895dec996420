"""The scheduler: fills each step's batch in policy order, within the batch limits and device memory. Pure.

Each step begins with the policy's order. A running request that is no longer at the head is preempted. Its KV
remains on the device until a request before it needs the blocks.

The next step may be planned while the last one still runs (``in_flight``). The plan then assumes everything
that the last step will have computed, except the values of its tokens. The values, and the step's time for
the policy, arrive with ``update``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import chain, islice

from fgengine.config import Admission, EngineConfig, Offloading
from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager, Where
from fgengine.kv.sizing import Pools
from fgengine.kv.transfer import Transfer
from fgengine.plan import PlanItem, StepPlan, StepResult, TokenEvent
from fgengine.request import Phase, Request
from fgengine.scheduling.guard import Guarded
from fgengine.scheduling.in_flight import InFlight
from fgengine.scheduling.plan_lifetime import ONCE, PlanLifetime, repeatable_steps
from fgengine.scheduling.policy import Policy, PolicyContext, make_policy, policy_class
from fgengine.scheduling.predictors import make_predictor
from fgengine.scheduling.queue_limit import NO_LIMIT, Queue, QueueLimit
from fgengine.scheduling.refusal import RequestRefused
from fgengine.scheduling.residency import KVResidency
from fgengine.scheduling.step_builder import Counters, Limits, StepBuilder
from fgengine.speed import Speed


class Scheduler:
    """Plans the steps of an engine; owns the policy, the queue and the KV accounting.

    The same scheduler serves a real engine and a simulation. For each step the caller does:

        plan = scheduler.schedule(now)              # submit its transfers, execute its items
        scheduler.update(result, now)               # after the step
        scheduler.copied(finished_transfers)        # when copies are done
    """

    def __init__(
        self,
        policy: Policy,
        kv: KVManager,
        limits: Limits,
        *,
        offloading: Offloading = "reactive",
        admission: Admission = "guarded",
        cost: CostModel | None = None,
        queue: QueueLimit = NO_LIMIT,
    ) -> None:
        """Raises ValueError if ``offloading`` is "auto" and there is no cost model."""
        self.policy = policy = Guarded(policy)
        self.kv = kv
        self.limits = limits
        self.max_batch_size = policy.context.max_batch_size
        self.counters = Counters()
        self.requests: dict[str, Request] = {}
        """All unfinished requests by id."""
        self.queue = Queue(queue, self.max_batch_size)
        self.residency = KVResidency(
            policy, kv, limits.block_bytes, self.counters, offloading, admission, cost
        )
        self.in_flight = InFlight()
        self._running: dict[str, Request] = {}
        """The requests of the last batch, by id."""
        self._delayed: dict[str, Request] = {}
        """Requests that were stalled in the last plan: selected, but their KV was not on the device."""
        self._next_step = 0
        self._builder = StepBuilder(0.0, 0)
        """The builder of the last plan; ``plan_lifetime`` reads it."""

    @classmethod
    def build(
        cls,
        config: EngineConfig,
        pools: Pools,
        *,
        block_bytes: int,
        max_model_len: int,
        cost: CostModel | None,
        speed: Callable[[], Speed | None],
        eos_token_ids: Iterable[int] = (),
        keep_learned: bool = True,
    ) -> Scheduler:
        """Create the scheduler of an engine with these settings and pools, for real or simulated steps.

        Args:
            cost: the cost model; None if neither the policy nor the offloading mode needs it.
            speed: returns the machine's speed; called only if a limit of the queue is not set.
            keep_learned: whether a learning predictor saves what it learns from now on.

        Raises ValueError if the policy or the predictor cannot be used.
        """
        predicts = policy_class(config.policy).needs_predictor
        predictor = make_predictor(config.predictor, config.model, keep=keep_learned) if predicts else None
        context = PolicyContext(cost, config.starvation_limit, config.max_batch_size, predictor)
        limits = Limits(
            max_tokens_per_batch=config.max_tokens_per_batch,
            chunked_prefill=config.chunked_prefill,
            max_model_len=max_model_len,
            eos_token_ids=frozenset(eos_token_ids),
            block_bytes=block_bytes,
        )
        return cls(
            make_policy(config.policy, context),
            KVManager(pools.device, pools.host, config.block_size),
            limits,
            offloading=config.offloading,
            admission=config.admission,
            cost=cost,
            queue=QueueLimit.of(config, speed),
        )

    def close(self) -> None:
        """Let the predictor save what it has learned."""
        if (predictor := self.policy.context.predictor) is not None:
            predictor.close()

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.requests)

    @property
    def num_running(self) -> int:
        """Number of requests in the last batch."""
        return len(self._running)

    @property
    def num_swapped(self) -> int:
        """Number of requests whose KV is on the host."""
        return len(self.kv.on_host)

    @property
    def under_pressure(self) -> bool:
        """Whether pressure is active: no request starts, and started requests run in order of arrival."""
        return self.has_work and self.residency.pressure.active

    def add(self, request: Request, now: float) -> None:
        """Accept a new request.

        Raises:
            RequestRefused: the request can never fit, or its id is in use.
            QueueFull: too many requests wait.
        """
        if request.id in self.requests:
            raise RequestRefused(f"a request with the id {request.id!r} is running already")
        if (length := request.max_context) > self.limits.max_model_len:
            raise RequestRefused(
                f"the prompt's {request.prompt_len} tokens and max_tokens {length - request.prompt_len} make "
                f"{length}; the limit is {self.limits.max_model_len} (max_model_len)",
                "prompt",
            )
        blocks = self.kv.blocks_for(request.max_len - 1)  # the last token needs no KV
        if blocks > self.kv.device.num_blocks:
            raise RequestRefused(
                f"the prompt's {request.prompt_len} tokens and max_tokens {request.params.max_tokens} need "
                f"{blocks} KV blocks; the device pool has {self.kv.device.num_blocks}",
                "prompt",
            )
        self.queue.check(request.prompt_len, now)
        self.requests[request.id] = request
        self.queue.add(request, now)
        self.policy.add(request, now)
        self.residency.arrived(request, now)

    def abort(self, request_id: str, now: float) -> Request | None:
        """End the request, in any state, and return it; None if it is unknown or has already ended."""
        request = self.requests.get(request_id)
        if request is not None:
            request.finish("abort", now)
            self.counters.aborted += 1
            self._forget(request)
        return request

    def expire(self, now: float) -> list[Request]:
        """End and return the requests that have waited for their start longer than the queue's timeout."""
        overdue = self.queue.overdue(now)
        for request in overdue:
            request.finish("timeout", now)
            self._forget(request)
        return overdue

    def schedule(self, now: float) -> StepPlan:
        """Plan the next step. The caller must submit all its transfers and execute all its items.

        If the last step still runs, the plan assumes its results and uses the blocks it will free. The caller
        must therefore execute the plan, and begin its copies, after the last step has ended on the device. If
        the last step ends a request with a stop token, the request is still in this plan; the additional
        token is discarded.
        """
        if self.in_flight.not_applied is not None:
            self._apply(self.in_flight.not_applied)
        builder = self._builder = StepBuilder(now, self.limits.max_tokens_per_batch)
        residency = self.residency
        self.policy.begin_step()
        residency.begin_step(now, len(self.requests))
        if residency.blocking and self.kv.transfers_in_flight:
            return StepPlan(self._next_step)
        self._fill(builder)
        residency.work_ahead(builder)
        postponed: dict[str, Request] = {}
        if residency.blocking and (builder.offloads or builder.uploads):  # no step runs while KV is copied
            postponed = {item.request.id: item.request for item in builder.items}
            builder.delayed |= postponed
            builder.items.clear()
        batch = {item.request.id: item.request for item in builder.items}
        self._change_phases(builder, batch, postponed)
        self._running, self._delayed = batch, builder.delayed
        for item in builder.items:
            if item.start == 0:
                self.queue.start(item.request)
                self.policy.on_start(item.request)
        residency.ran(batch.values())
        builder.moved |= residency.uses(batch.keys())
        if not self.in_flight:
            self._begin_last(now)
        plan = StepPlan(self._next_step, builder.items, builder.offloads, builder.uploads)
        if plan.items:
            self._next_step += 1
            self.in_flight.add(plan)
        return plan

    def update(self, result: StepResult, now: float) -> list[TokenEvent]:
        """Process the result of the earliest planned step. Returns the new tokens.

        Raises RuntimeError if the result belongs to another step.
        """
        plan = self.in_flight.take(result.step)
        if plan is self.in_flight.not_applied:
            self._apply(plan)
        events, stopped = self._take_tokens(plan, result)
        self._end_step(plan, result.seconds, now, stopped)
        return events

    def advance(self, steps: int, seconds: float, now: float) -> list[Request]:
        """Process ``steps`` executions of the last plan at once; for simulations. All tokens are 0.

        Args:
            steps: at most the number that ``plan_lifetime`` returned.
            seconds: total time of these steps.
            now: when the last of them ended.

        Returns the requests that ended.
        """
        plan = self.in_flight.take(self._next_step - 1)
        self._apply(plan, steps)
        return self._end_step(plan, seconds, now, steps=steps)

    def copied(self, transfers: list[Transfer]) -> None:
        """Record that these transfers have finished."""
        for transfer in transfers:
            self.kv.finish(transfer)
            if (request := self.requests.get(transfer.request_id)) is not None:
                self.residency.copied(request)

    def _change_phases(
        self, builder: StepBuilder, batch: dict[str, Request], postponed: dict[str, Request]
    ) -> None:
        """Record the phase changes from the last plan to this one.

        Args:
            postponed: requests that wait only because no step runs while KV is copied; they do not count as
                preempted.
        """
        change_phase = self.in_flight.change_phase
        for id, request in self._running.items():
            if id not in batch:
                change_phase(request, "queued", preempted=id not in postponed)
        for id, request in self._delayed.items():
            if id not in builder.delayed:
                change_phase(request, "queued")
        for request in builder.delayed.values():
            change_phase(request, "swapped")
        for request, _, num_tokens, _, yields_token in builder.items:
            decode = num_tokens == 1 and yields_token and len(request.tokens) > request.prompt_len
            phase: Phase = "decode" if decode else "prefill"
            if request.phase != phase:
                change_phase(request, phase)

    def _begin_last(self, now: float) -> None:
        self.counters.preemptions += self.in_flight.begin_last(now)

    def _apply(self, plan: StepPlan, steps: int = 1) -> None:
        """Update the plan's requests as if it had been executed ``steps`` times.

        The tokens are not known yet; zeros stand for them. A request that reaches its maximum length frees
        its KV.
        """
        self.in_flight.not_applied = None
        self.residency.pressure.computed(plan, steps)
        if steps > 1:
            for item in plan.items:
                if len(item.blocks) * self.kv.block_size < item.start + steps:
                    self.kv.grow(item.request.id, item.start + steps)
        zeros = bytes(steps)
        for request, _, num_tokens, _, yields_token in plan.items:
            if request.finish_reason is not None:
                continue
            request.num_computed += num_tokens * steps
            if yields_token:
                if steps == 1:
                    request.tokens.append(0)  # eight times as fast as extend
                else:
                    request.tokens.extend(zeros)
                if len(request.tokens) - request.prompt_len >= request.params.max_tokens:
                    self.residency.forget(request)
                    self.in_flight.ending.add(request.id)

    def _take_tokens(self, plan: StepPlan, result: StepResult) -> tuple[list[TokenEvent], set[Request]]:
        """Replace the zeros with the tokens. Returns the new tokens and the requests that they end."""
        events: list[TokenEvent] = []
        stopped: set[Request] = set()
        eos, logprob = self.limits.eos_token_ids, None
        if result.prompt_logprobs:
            self._take_prompts(plan, result)
        for request, start, num_tokens, _, yields_token in plan.items:
            if not yields_token or request.finish_reason is not None:
                continue
            token = request.tokens[start + num_tokens] = result.tokens[request.id]
            top = None
            if result.logprobs and (logprob := result.logprobs.get(request.id)) is not None:
                request.logprobs.append(logprob)
                if (top := result.top_logprobs.get(request.id)) is not None:
                    request.top_logprobs.append(top)
            params = request.params
            if token in params.stop_token_ids or (token in eos and not params.ignore_eos):
                stopped.add(request)
            prompt = request.prompt_logprobs if start + num_tokens == request.prompt_len else None
            events.append(TokenEvent(request, token, logprob, top, prompt))
        return events, stopped

    def _take_prompts(self, plan: StepPlan, result: StepResult) -> None:
        """Give each request the piece of its prompt's log probabilities that the plan computed."""
        for item in plan.items:
            piece, collected = result.prompt_logprobs.get(item.request.id), item.request.prompt_logprobs
            if piece is not None and collected is not None:
                collected.extend(piece)

    def _end_step(
        self,
        plan: StepPlan,
        seconds: float,
        now: float,
        stopped: Collection[Request] = (),
        steps: int = 1,
    ) -> list[Request]:
        """Finish the requests that ended with the plan, and report the step to the policy for the others.

        Args:
            seconds: total time of the plan's ``steps`` executions.
            stopped: requests that end with a stop token.

        Returns all requests that ended.
        """
        on_step = self.policy.inner.on_step  # without the guard, which would double the cost of the call
        ended: list[Request] = []
        generated_tokens = 0
        for request, start, num_tokens, _, yields_token in plan.items:
            if request.finish_reason is not None:
                continue
            request.last_ran_at = now
            if yields_token:
                generated_tokens += steps
                generated = start + num_tokens + steps - request.prompt_len
                if generated == 1:
                    request.first_token_at = now
                    self.counters.prompt_tokens += request.prompt_len
                if request in stopped:
                    request.finish("error" if request.failure else "stop", now)
                elif generated >= request.params.max_tokens:
                    request.finish("length", now)
                if request.finish_reason is not None:
                    ended.append(request)
                    self._forget(request)
                    continue
            try:
                on_step(request, seconds, now)
            except Exception as error:
                raise self.policy.raised("on_step", error) from error
        self.counters.steps += steps
        self.counters.generated_tokens += generated_tokens
        self.counters.finished += len(ended)
        self.residency.ended_step(plan, now)
        self._begin_last(now)
        return ended

    def _forget(self, request: Request) -> None:
        self.policy.remove(request)
        self.queue.forget(request)
        self.in_flight.ending.discard(request.id)
        for group in (self.requests, self._running, self._delayed):
            group.pop(request.id, None)
        self.residency.ended(request, last=not self.requests)

    def plan_lifetime(self, now: float) -> PlanLifetime:
        """Return for how many steps, and until when, the plan just made for ``now`` would be made again.

        A simulation processes these steps with one call of ``advance``.
        """
        if self.limits.eos_token_ids:
            return ONCE
        steps = repeatable_steps(self._builder, self.kv, self.residency)
        if steps <= 1:
            return ONCE
        return PlanLifetime(steps, now + self.policy.steady_seconds(self._running.values(), now))

    # -- filling a batch -----------------------------------------------------------------------------

    def _fill(self, builder: StepBuilder) -> None:
        """Fill the batch in the policy's order until it is full, or no tokens or no memory are left.

        A request that waits for a copy takes no place in the batch. To fill these places, up to two batches
        of requests are considered, so the cost of a step does not depend on the number of waiting requests.
        """
        max_items, items, ending = self.max_batch_size, builder.items, self.in_flight.ending
        admitting = True
        seen: set[str] = set()
        for request in islice(self.residency.pressure.order(builder.now), 2 * max_items + len(ending)):
            if len(items) >= max_items or builder.tokens_left == 0:
                if self.residency.reserve is None:
                    return
                if request.id in self.kv.on_host:
                    builder.next_up.append(request)
                continue
            if request.id in ending:
                continue
            seen.add(request.id)
            if admitting:
                admitting = self._try(request, builder)
            elif self._runs_in_place(request):
                self._try(request, builder, evict=False)
        if admitting and not builder.delayed:
            return
        # The first requests of the order wait for memory or copies. Fill the free places with requests that
        # need neither, anywhere in the order: first those of the last batch, because the policy chose them.
        last_batch = sorted(self._running.values(), key=self.residency.pressure.priority)
        for request in chain(last_batch, self.residency.in_order(2 * max_items + len(seen))):
            if len(items) >= max_items or builder.tokens_left == 0:
                return
            if request.id not in seen and self._runs_in_place(request):
                seen.add(request.id)
                self._try(request, builder, evict=False)
        if items or self.kv.transfers_in_flight:
            return
        # Every request on the device needs a block and none is free: run the first one and evict others.
        for request in self.residency.in_order(max_items):
            builder.claimed = 0
            self._try(request, builder)
            if items or self.kv.transfers_in_flight:
                return

    def _runs_in_place(self, request: Request) -> bool:
        """Whether the request can run without admission: it decodes, or its blocks are reserved."""
        return request.id in self.kv.on_device and (
            request.num_pending == 1 or self.residency.reserves_max_len
        )

    def _try(self, request: Request, builder: StepBuilder, *, evict: bool = True) -> bool:
        """Put the request into the batch, or start the copy it waits for.

        Returns False if no later request of the order may be admitted in this step.
        """
        kv, start = self.kv, request.num_computed
        pending = len(request.tokens) - start
        if pending == 1:
            table = kv.table_with_room(request.id, start + 1)
            if table is not None:  # the common case, kept fast
                builder.items.append(PlanItem(request, start, 1, table, True))
                builder.tokens_left -= 1
                return True
        where = kv.where(request.id)
        if where is Where.OFFLOADING or where is Where.UPLOADING:
            builder.delayed[request.id] = request
            return True
        if where is Where.HOST:
            builder.delayed[request.id] = request
            return self.residency.bring_back(request, builder, evict=evict) != "never"
        count = self._tokens_now(pending, builder)
        if count == 0:
            return self.limits.chunked_prefill  # no token left for a prompt, but perhaps one for a decode
        reached = start + count
        found = self.residency.admit(request, reached, builder, evict=evict)
        if found == "now":
            yields = reached == len(request.tokens)
            builder.items.append(PlanItem(request, start, count, kv.table(request.id), yields))
            builder.tokens_left -= count
            builder.has_prefill |= pending > 1
        return found != "never"

    def _tokens_now(self, pending: int, builder: StepBuilder) -> int:
        """Return how many of a request's pending tokens this step computes; 0 if the request must wait.

        Without chunked prefill a step computes the complete prompt. A prompt that does not fit into the
        step's remaining tokens waits; if it is the first prompt of the batch, the step computes a part of it.

        With chunked prefill a prompt gets the tokens that are left after one token for each other request of
        the batch. Decodes therefore never wait for prompts. Source: Sarathi-Serve (OSDI'24).
        """
        if pending == 1:
            return 1
        if self.limits.chunked_prefill:
            max_items = min(self.max_batch_size, len(self.requests) - len(self.in_flight.ending))
            others = max_items - len(builder.items) - 1
            minimum = 0 if builder.items else 1
            return min(pending, max(minimum, builder.tokens_left - others))
        if pending <= builder.tokens_left:
            return pending
        return 0 if builder.has_prefill else builder.tokens_left
