"""Fills each iteration's batch in policy order, within the batch's limits and the device's memory. Pure.

Each step starts again from the policy's order, and a request that is not at its head does not run: that is
all there is to preemption. Its KV stays on the device until a request before it needs the blocks.

The next step may be planned while the last one still runs (``in_flight``): then it is planned from what that
one will have computed, all but the values of its tokens. Those come with ``update``, as does its time for the
policy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import chain, islice

from fgengine.config import EngineConfig, Offloading
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
    def __init__(
        self,
        policy: Policy,
        kv: KVManager,
        limits: Limits,
        *,
        offloading: Offloading = "reactive",
        cost: CostModel | None = None,
        queue: QueueLimit = NO_LIMIT,
    ) -> None:
        """``offloading="auto"`` takes a cost model. Raises ValueError when there is none."""
        self.policy = policy = Guarded(policy)
        self.kv = kv
        self.limits = limits
        self.max_batch_size = policy.context.max_batch_size
        self.counters = Counters()
        self.requests: dict[str, Request] = {}
        """All unfinished requests by id."""
        self.queue = Queue(queue, self.max_batch_size)
        self.residency = KVResidency(policy, kv, limits.block_bytes, self.counters, offloading, cost)
        self.in_flight = InFlight()
        self._running: dict[str, Request] = {}
        """The last batch."""
        self._delayed: dict[str, Request] = {}
        """Those that would have been in the last batch, had their KV been on the device."""
        self._next_step = 0
        self._builder = StepBuilder(0.0, 0)
        """Of the last plan: ``plan_lifetime`` tells from it for how long the plan holds."""

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
        """The scheduler of an engine with these settings and pools, for real steps or simulated ones.

        ``cost``: None where neither the policy nor the offloading mode needs it. ``speed``: how fast the
        machine is, called only where the queue's limits are left open. ``keep_learned``: whether a predictor
        that learns keeps what it learns from now on.

        Raises ValueError for a policy or predictor that cannot be used.
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
            cost=cost,
            queue=QueueLimit.of(config, speed),
        )

    def close(self) -> None:
        """Its predictor keeps what it has learned."""
        if (predictor := self.policy.context.predictor) is not None:
            predictor.close()

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_swapped(self) -> int:
        return len(self.kv.on_host)

    @property
    def under_pressure(self) -> bool:
        """Whether KV memory is nearly full: nothing new starts, and started requests run by arrival."""
        return self.has_work and self.residency.pressure.active

    def add(self, request: Request, now: float) -> None:
        """Raises RequestRefused for a request that can never fit or whose id is in use, and QueueFull."""
        if request.id in self.requests:
            raise RequestRefused(f"a request with the id {request.id!r} is running already")
        if request.max_len > self.limits.max_model_len:
            raise RequestRefused(
                f"the prompt's {request.prompt_len} tokens and max_tokens {request.params.max_tokens} make "
                f"{request.max_len}; the limit is {self.limits.max_model_len} (max_model_len)"
            )
        blocks = self.kv.blocks_for(request.max_len - 1)  # the last token is reported and needs no KV
        if blocks > self.kv.device.num_blocks:
            raise RequestRefused(
                f"the prompt's {request.prompt_len} tokens and max_tokens {request.params.max_tokens} need "
                f"{blocks} KV blocks; the device pool has {self.kv.device.num_blocks}"
            )
        self.queue.check(request.prompt_len, now)
        self.requests[request.id] = request
        self.queue.add(request, now)
        self.policy.add(request, now)
        self.residency.arrived(request, now)

    def abort(self, request_id: str, now: float) -> Request | None:
        """Forget the request, from any state; None when it is not known (any more)."""
        request = self.requests.get(request_id)
        if request is not None:
            request.finish("abort", now)
            self.counters.aborted += 1
            self._forget(request)
        return request

    def expire(self, now: float) -> list[Request]:
        """Drop the requests that have waited for their start for longer than the queue's timeout."""
        overdue = self.queue.overdue(now)
        for request in overdue:
            request.finish("timeout", now)
            self._forget(request)
        return overdue

    def schedule(self, now: float) -> StepPlan:
        """The next step. Every transfer in it is submitted and every item executed by the caller.

        Where the last step still runs, this one counts on what that will have computed, and uses what that
        frees: it computes, and its copies begin, only after that one has ended on the device. A request that
        then turns out to have ended with a stop token has been planned for once more; that token is dropped.
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
        held: dict[str, Request] = {}
        if residency.blocking and (builder.offloads or builder.uploads):  # no step runs while KV is copied
            held = {item.request.id: item.request for item in builder.items}
            builder.delayed |= held
            builder.items.clear()
        batch = {item.request.id: item.request for item in builder.items}
        self._change_phases(builder, batch, held)
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
        """Take in what the earliest planned step computed.

        Raises RuntimeError when the result is not of that one.
        """
        plan = self.in_flight.take(result.step)
        if plan is self.in_flight.not_applied:
            self._apply(plan)
        events, stopped = self._take_tokens(plan, result)
        self._end_step(plan, result.seconds, now, stopped)
        return events

    def advance(self, steps: int, seconds: float, now: float) -> list[Request]:
        """Take in ``steps`` executions of the last plan that took ``seconds`` together and ended at ``now``.

        Every token is 0. No more steps than ``plan_lifetime`` allows. Returns the requests that ended.
        """
        plan = self.in_flight.take(self._next_step - 1)
        self._apply(plan, steps)
        return self._end_step(plan, seconds, now, steps=steps)

    def copied(self, transfers: list[Transfer]) -> None:
        """These copies are done."""
        for transfer in transfers:
            self.kv.finish(transfer)
            if (request := self.requests.get(transfer.request_id)) is not None:
                self.residency.copied(request)

    def _change_phases(
        self, builder: StepBuilder, batch: dict[str, Request], held: dict[str, Request]
    ) -> None:
        """From the last plan to this one. ``held``: requests that wait only because no step runs while KV is
        copied; they are not preempted."""
        change_phase = self.in_flight.change_phase
        for id, request in self._running.items():
            if id not in batch:
                change_phase(request, "queued", preempted=id not in held)
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
        """Write the effect of the plan's execution, ``steps`` times in a row, into its requests, as far as it
        is known before its tokens are: zeros stand for those. A request that ends with it frees its KV."""
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
                    request.tokens.append(0)  # takes an eighth of the time
                else:
                    request.tokens.extend(zeros)
                if len(request.tokens) - request.prompt_len >= request.params.max_tokens:
                    self.residency.forget(request)
                    self.in_flight.ending.add(request.id)

    def _take_tokens(self, plan: StepPlan, result: StepResult) -> tuple[list[TokenEvent], set[Request]]:
        """Write the tokens in place of the zeros. Also which requests they end."""
        events: list[TokenEvent] = []
        stopped: set[Request] = set()
        eos, logprob = self.limits.eos_token_ids, None
        for request, start, num_tokens, _, yields_token in plan.items:
            if not yields_token or request.finish_reason is not None:
                continue
            token = request.tokens[start + num_tokens] = result.tokens[request.id]
            if result.logprobs and (logprob := result.logprobs.get(request.id)) is not None:
                request.logprobs.append(logprob)
            params = request.params
            if token in params.stop_token_ids or (token in eos and not params.ignore_eos):
                stopped.add(request)
            events.append(TokenEvent(request, token, logprob))
        return events, stopped

    def _end_step(
        self,
        plan: StepPlan,
        seconds: float,
        now: float,
        stopped: Collection[Request] = (),
        steps: int = 1,
    ) -> list[Request]:
        """The plan, executed ``steps`` times, has ended: finish requests, charge ``seconds`` to the others.

        ``stopped``: requests whose last token ends them before their length does. Returns all that ended.
        """
        on_step = self.policy.inner.on_step  # the guard's would double the cost of the call
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
                    request.finish("stop", now)
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
        """How often, and until when, the plan just made for ``now`` would be made again at every step.

        A simulation takes them as one call: ``advance``.
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

        A request that waits for a copy takes no place in the batch; as many again as the batch holds are
        looked at for those, so that a step never depends on the number of waiting requests.
        """
        most, items, ending = self.max_batch_size, builder.items, self.in_flight.ending
        admitting = True
        seen: set[str] = set()
        for request in islice(self.residency.pressure.order(builder.now), 2 * most + len(ending)):
            if len(items) >= most or builder.tokens_left == 0:
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
        # The first in the order wait for memory or copies. Those that need neither run on meanwhile, however
        # far back in the order: the last batch first, since its policy gave it the device.
        last_batch = sorted(self._running.values(), key=self.residency.pressure.priority)
        for request in chain(last_batch, self.residency.in_order(2 * most + len(seen))):
            if len(items) >= most or builder.tokens_left == 0:
                return
            if request.id not in seen and self._runs_in_place(request):
                seen.add(request.id)
                self._try(request, builder, evict=False)
        if items or self.kv.transfers_in_flight:
            return
        # Every request on the device needs a block and none is free: the first goes on at the others' cost.
        for request in self.residency.in_order(most):
            builder.claimed = 0
            self._try(request, builder)
            if items or self.kv.transfers_in_flight:
                return

    def _runs_in_place(self, request: Request) -> bool:
        """Whether it may run without being admitted: a decode, or one that has room for its longest."""
        return request.id in self.kv.on_device and (request.num_pending == 1 or self.residency.booked)

    def _try(self, request: Request, builder: StepBuilder, *, evict: bool = True) -> bool:
        """Put the request into the batch, or start what it waits for. False: let no later one be admitted."""
        kv, start = self.kv, request.num_computed
        pending = len(request.tokens) - start
        if pending == 1:
            table = kv.table_with_room(request.id, start + 1)
            if table is not None:  # by far the most frequent case
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
            return self.limits.chunked_prefill  # a decode may find its token where a prompt found none
        reached = start + count
        found = self.residency.admit(request, reached, builder, evict=evict)
        if found == "now":
            yields = reached == len(request.tokens)
            builder.items.append(PlanItem(request, start, count, kv.table(request.id), yields))
            builder.tokens_left -= count
            builder.has_prefill |= pending > 1
        return found != "never"

    def _tokens_now(self, pending: int, builder: StepBuilder) -> int:
        """How many of a request's pending tokens this step computes; 0: it must wait.

        Prompts are computed whole, and one that no batch could hold beside the decodes in pieces. Chunked,
        they take what is left once everybody else in the batch has a token, so that decodes never
        wait for them (Sarathi-Serve, OSDI'24).
        """
        if pending == 1:
            return 1
        if self.limits.chunked_prefill:
            most = min(self.max_batch_size, len(self.requests) - len(self.in_flight.ending))
            others = most - len(builder.items) - 1
            least = 0 if builder.items else 1
            return min(pending, max(least, builder.tokens_left - others))
        if pending <= builder.tokens_left:
            return pending
        return 0 if builder.has_prefill else builder.tokens_left
