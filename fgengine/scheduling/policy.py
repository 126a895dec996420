"""What a scheduling policy is, and how one is found by name.

A policy orders requests. It sees requests, predicted seconds (the cost model) and measured seconds
(``on_step``); never blocks, tensors or clocks. The scheduler fills the batch in its order and takes
memory from those at its end. ``guard`` checks what is promised here.
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
"""Compared as a tuple; the smaller runs sooner."""

ENTRY_POINTS = "fgengine.policies"


class PolicyError(RuntimeError):
    """A policy broke its contract, or raised: the message names it and says what it did. Nothing can be
    scheduled after that."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the policy {name!r} cannot be used: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What a policy may know when it is made."""

    cost: CostModel | None = None
    """Present when the policy's ``needs_cost`` is true, else perhaps not."""
    starvation_limit: float = 30.0
    """Seconds."""
    max_batch_size: int = 16
    """Requests in one step, at most."""
    predictor: Predictor | None = None
    """Present when the policy's ``needs_predictor`` is true, else perhaps not."""
    name: str = ""
    """By which the policy was asked for, for messages; empty where it was made by hand."""


class Level(NamedTuple):
    """One of the classes that a policy sorts requests into, shown at /stats."""

    name: str
    requests: int
    """How many are in it now."""
    quantum: float | None = None
    """Seconds that one of them may run before it leaves the level, where there is such a limit."""


class Policy(ABC):
    """An order over the unfinished requests it was given."""

    summary: ClassVar[str] = ""
    """One line for lists of policies."""
    paper: ClassVar[str] = ""
    """Where it comes from: ``FastServe, NSDI'26``."""
    needs_cost: ClassVar[bool] = False
    needs_predictor: ClassVar[bool] = False

    def __init__(self, context: PolicyContext) -> None:
        self.context = context

    @abstractmethod
    def add(self, request: Request, now: float) -> None: ...

    @abstractmethod
    def remove(self, request: Request) -> None:
        """It has finished or was aborted."""

    @abstractmethod
    def order(self, now: float) -> Iterator[Request]:
        """The requests that may run, the next one first. Lazy: the scheduler takes about a batch of them.

        Each at most once, and none that has ended. Nothing is added or removed while the iterator is in use.
        A request may be left out only as long as another one is given.
        """

    @abstractmethod
    def priority(self, request: Request) -> Priority:
        """The request's place, numbers but no NaN: distinct, and ascending along ``order``."""

    def on_start(self, request: Request) -> None:  # noqa: B027 (may do nothing)
        """It is in the batch just made, and its computation begins with it, or begins anew where its KV was
        thrown away. The next batch may be made before ``on_step`` tells of this one."""

    def on_step(self, request: Request, seconds: float, now: float) -> None:  # noqa: B027 (may do nothing)
        """It was in a batch that took ``seconds``, and goes on. Its progress is already updated.

        A simulation may report several steps of the same batch as one, as far as ``steady_seconds`` allows.
        """

    def expected_wait(self, request: Request, now: float) -> float:
        """Seconds until an idle request is expected to run again: the paper's ENST (section 5).

        Under proactive offloading, of the last requests in the order that are on the device, the one with the
        longest wait leaves first; equal waits go by ``priority``.
        """
        return 0.0

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """Seconds for which a simulation may take the steps of the batch ``running`` as one, if nothing
        arrives, ends or is aborted meanwhile. Until then the policy promises:

        - The batch stays at the head of the order. Unless it is full, the order behind it does not change
          either: the next request there may be admitted as soon as there is room.
        - The order of the requests that hold KV does not change: memory is taken from its end.
        - ``on_step`` with several steps in one report, their seconds added up, leaves the policy as it would
          be after as many reports. The step that runs when the time is over is still part of the report.

        0: not known, every step is taken. Infinite: until something arrives, ends or is aborted.
        """
        return 0.0

    def levels(self) -> Sequence[Level]:
        """Its classes of requests, those that run first in front, empty ones too; none by default.

        Shown by /stats and `fgbench watch`. Asked between two steps: keep counts, do not look at requests.
        """
        return ()


class SortedPolicy(Policy):
    """A policy that is a sort key: subclass it and write ``key``. O(log n) a change."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._queue: Any = SortedList()
        """(place, request), ascending."""
        self._places: dict[str, Priority] = {}
        self._serial = 0

    @abstractmethod
    def key(self, request: Request) -> Priority:
        """The smaller runs sooner; equal keys run in order of arrival.

        It may depend on the request's progress, which changes only when the request has run.
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
        """Give it the place that its key asks for now."""
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
    """Those that installed packages bring, by name; a built-in name is taken away by none."""
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {entry.name: entry for entry in entries if entry.name not in _BUILT_IN}


def policy_names() -> list[str]:
    """Names that ``policy_class`` finds: the built-in ones, then those of installed packages."""
    return [*_BUILT_IN, *sorted(installed_policies())]


def policy_class(name: str) -> type[Policy]:
    """The class behind a built-in name, an entry point of ``fgengine.policies`` or ``package.module:Class``.

    Raises ValueError, naming the policies there are, when there is none.
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
    """The policy of that name, its context told the name.

    Raises:
        ValueError: the name is unknown, the policy needs a cost model and there is none, or it refused.
        PolicyError: it raised when it was made.
    """
    cls = policy_class(name)
    if cls.needs_cost and context.cost is None:
        raise ValueError(f"policy {name!r} needs a profile: run `fgbench profile` or give one with --profile")
    try:
        policy = cls(replace(context, name=name))
        policy.context  # noqa: B018 (set by Policy.__init__, which a subclass may have forgotten to call)
    except ValueError as error:  # it does not take these settings
        raise ValueError(f"policy {name!r}: {error}") from error
    except Exception as error:  # the class may be of another package: whatever it does wrong
        raise PolicyError(name, f"its __init__() raised {type(error).__name__}: {error}") from error
    return policy
