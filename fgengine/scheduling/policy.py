"""The interface of a scheduling policy, and the functions that find a policy by name.

A policy orders requests. It sees requests, predicted times (the cost model) and measured times (``on_step``).
It never sees blocks, tensors or clocks. The scheduler fills the batch from the front of the order and takes
memory from the requests at its end. ``guard`` checks the contract described here; docs/writing-a-policy.md
explains it with an example.
"""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sortedcontainers import SortedList

from fgengine.cost import CostModel
from fgengine.request import Request
from fgengine.scheduling.lookup import load

if TYPE_CHECKING:
    from fgengine.scheduling.predictor import Predictor

Priority = tuple[float, ...]
"""A place in the order. Tuples are compared element by element; the smallest one runs first."""

ENTRY_POINTS = "fgengine.policies"
"""The entry point group in which installed packages offer policies."""


class PolicyError(RuntimeError):
    """A policy broke its contract or raised an exception; the message names the policy and the reason.

    The scheduler cannot continue after this error.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the policy {name!r} cannot be used: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """The information a policy gets when it is created, as in ``FCFS(PolicyContext(max_batch_size=32))``."""

    cost: CostModel | None = None
    """The cost model. Always present if the policy's ``needs_cost`` is true; otherwise it may be None."""
    starvation_limit: float = 30.0
    """Seconds after which a waiting request should be preferred; each policy defines the exact meaning."""
    max_batch_size: int = 16
    """Maximum number of requests in one step."""
    predictor: Predictor | None = None
    """The predictor of output lengths. Always present if the policy's ``needs_predictor`` is true."""
    name: str = ""
    """Name under which the policy was requested, for messages; empty if it was created directly."""


class Level(NamedTuple):
    """One of a policy's queues (or other classes of requests), shown at /stats."""

    name: str
    requests: int
    """Number of requests in it now."""
    quantum: float | None = None
    """Seconds that a request may run before it leaves the level; None: no limit."""


class Policy(ABC):
    """An order over the unfinished requests.

    The scheduler calls ``add`` once when a request arrives and ``remove`` once when it has ended. For each
    step it calls ``order`` and takes about a batch of requests from the front. It takes memory from the
    requests with the largest ``priority``. A policy must be deterministic: the same calls give the same
    order.

    All times are seconds on the engine's clock. Most policies are a sort key; they derive from
    ``SortedPolicy``. docs/writing-a-policy.md shows a complete example.
    """

    summary: ClassVar[str] = ""
    """One line for lists of policies."""
    paper: ClassVar[str] = ""
    """The source, such as ``FastServe, NSDI'26``."""
    needs_cost: ClassVar[bool] = False
    """Whether the policy needs ``context.cost``."""
    needs_predictor: ClassVar[bool] = False
    """Whether the policy needs ``context.predictor``."""

    def __init__(self, context: PolicyContext) -> None:
        """Create a policy without requests.

        A subclass may raise ValueError if it cannot work with the context; the user sees the message.
        """
        self.context = context

    @abstractmethod
    def add(self, request: Request, now: float) -> None:
        """Add a new request. Called once for each request."""

    @abstractmethod
    def remove(self, request: Request) -> None:
        """Remove a request that has finished or was aborted; ``request.finish_reason`` is set."""

    @abstractmethod
    def order(self, now: float) -> Iterator[Request]:
        """Yield the requests that may run, the next one first.

        Be lazy: the scheduler takes about a batch of requests, no matter how many wait. Yield each request at
        most once, and none that has ended. A request may be left out only while another one is yielded.
        The scheduler adds and removes nothing while it uses the iterator.
        """

    @abstractmethod
    def priority(self, request: Request) -> Priority:
        """Return the request's place in the order.

        Priorities are tuples of numbers without NaN. They must be distinct and ascend along ``order``.
        """

    def on_start(self, request: Request) -> None:  # noqa: B027 (may do nothing)
        """Called if the request's computation begins with the batch just made.

        It is called again if the KV was discarded and the computation begins again. The next batch may be
        made before ``on_step`` reports this one.
        """

    def on_step(self, request: Request, seconds: float, now: float) -> None:  # noqa: B027 (may do nothing)
        """Called after a step in which the request ran, unless the request ended with that step.

        Args:
            request: its progress (``num_generated`` and so on) is already updated.
            seconds: how long the step took. A simulation may report several steps of the same batch
                as one, within the limits of ``steady_seconds``.
        """

    def expected_wait(self, request: Request, now: float) -> float:
        """Return the seconds until an idle request is expected to run again.

        This is the ENST of FastServe (NSDI'26), section 5. It is used only with proactive offloading. Among
        the last requests of the order that are on the device, the one with the longest expected wait is
        offloaded first. If waits are equal, ``priority`` decides.
        """
        return 0.0

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """Return for how many seconds a simulation may take the steps of the batch ``running`` as one.

        The result assumes that no request arrives, ends or is aborted. Until then the policy guarantees:

        - The batch remains at the head of the order. If the batch is not full, the order after it does not
          change either, because the next request could be admitted.
        - The order of the requests that hold KV does not change, because memory is taken from its end.
        - One ``on_step`` call for several steps (with the sum of their seconds) has the same effect as one
          call for each step. The step that is running when the time is over belongs to the report.

        Returns 0 if it is not known; the simulation then takes every step. Returns infinity if only an
        arrival, an end or an abort can change the order.
        """
        return 0.0

    def levels(self) -> Sequence[Level]:
        """Return the policy's queues, including empty ones, those that run first in front; default: none.

        /stats and `fgbench watch` show them. It is called between two steps and must be fast: keep counts
        instead of iterating over the requests.
        """
        return ()


class SortedPolicy(Policy):
    """A policy that is defined by a sort key: a subclass implements only ``key``.

    A change costs O(log n) for n unfinished requests.

        class ShortestPrompt(SortedPolicy):
            def key(self, request: Request) -> Priority:
                return (request.prompt_len,)
    """

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._queue: Any = SortedList()
        """(place, request), ascending by place."""
        self._places: dict[str, Priority] = {}
        """Each request's key followed by its number of arrival, by request id."""
        self._serial = 0

    @abstractmethod
    def key(self, request: Request) -> Priority:
        """Return the request's sort key: the smallest key runs first; equal keys run in order of arrival.

        The key may depend on the request's progress, which changes only when the request runs.
        """

    def add(self, request: Request, now: float) -> None:
        self._serial += 1
        place = (*self.key(request), float(self._serial))
        self._places[request.id] = place
        self._queue.add((place, request))

    def remove(self, request: Request) -> None:
        self._queue.remove((self._places.pop(request.id), request))

    def order(self, now: float) -> Iterator[Request]:
        return (request for _, request in self._queue)

    def priority(self, request: Request) -> Priority:
        return self._places[request.id]

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        self.replace(request)

    def replace(self, request: Request) -> None:
        """Compute the request's key again and move the request to its new place."""
        old = self._places[request.id]
        new = (*self.key(request), old[-1])
        if new != old:
            self._queue.remove((old, request))
            self._queue.add((new, request))
            self._places[request.id] = new


_BUILT_IN = {
    "static": "fgengine.scheduling.static:Static",
    "fcfs": "fgengine.scheduling.fcfs:FCFS",
    "mlfq": "fgengine.scheduling.mlfq:MLFQ",
    "sj-mlfq": "fgengine.scheduling.mlfq:SkipJoinMLFQ",
    "sj-mlfq-artifact": "fgengine.scheduling.mlfq:ArtifactMLFQ",
    "srpt": "fgengine.scheduling.srpt:SRPT",
    "sjf": "fgengine.scheduling.sjf:SJF",
    "sprpt": "fgengine.scheduling.sprpt:SPRPT",
    "vtc": "fgengine.scheduling.vtc:VTC",
}


def installed_policies() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the policies of installed packages by name. They cannot replace a built-in policy."""
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {entry.name: entry for entry in entries if entry.name not in _BUILT_IN}


def policy_names() -> list[str]:
    """Return all policy names: the built-in ones, then those of installed packages."""
    return [*_BUILT_IN, *sorted(installed_policies())]


def policy_class(name: str) -> type[Policy]:
    """Return the policy class of a name.

    Args:
        name: a built-in name, an entry point of the group ``fgengine.policies``, or ``package.module:Class``.

    Raises ValueError if there is no such policy; the message lists the available ones.
    """
    target = _BUILT_IN.get(name) or (name if ":" in name else None)
    if target is None and (entry := installed_policies().get(name)) is not None:
        target = entry.value
    if target is None:
        raise ValueError(
            f"there is no policy {name!r}; there are {', '.join(policy_names())}, or package.module:Class"
        )
    found = load("policy", name, target)
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ValueError(f"policy {name!r}: {target} is not a subclass of fgengine.scheduling.policy.Policy")
    return found


def make_policy(name: str, context: PolicyContext) -> Policy:
    """Create the policy of a name.

        policy = make_policy("fcfs", PolicyContext(max_batch_size=32))

    Args:
        name: see ``policy_class``.
        context: what the policy gets; ``name`` is set in it.

    Raises:
        ValueError: the name is unknown, the policy needs a cost model and the context has none, or the
            policy raised ValueError itself.
        PolicyError: the policy's constructor raised any other exception.
    """
    cls = policy_class(name)
    if cls.needs_cost and context.cost is None:
        raise ValueError(f"policy {name!r} needs a profile: run `fgbench profile` or give one with --profile")
    try:
        policy = cls(replace(context, name=name))
        policy.context  # noqa: B018 (set by Policy.__init__, which a subclass may have forgotten to call)
    except ValueError as error:  # the policy rejects these settings
        raise ValueError(f"policy {name!r}: {error}") from error
    except Exception as error:  # a policy of another package may raise anything
        raise PolicyError(name, f"its __init__() raised {type(error).__name__}: {error}") from error
    return policy
