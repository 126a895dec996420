"""A workload: requests with their prompts, lengths and arrival times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgbench.workload.arrivals import POISSON, Arrivals

if TYPE_CHECKING:
    from numpy.typing import NDArray

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shift:
    """Changes the token ids of prompts from load to load, so that no server finds them in its prefix cache.

    Token j of request i becomes ``low + (id - low + a + b * j) mod (high - low)``. The numbers a and b are
    a hash of the load and of i; in a segment that prompts share, of the load and the segment's name. So
    lengths do not change, and every server gets the same ids.
    """

    load: str
    """The load: its arrival process and its rate. Other loads get other ids."""
    low: int
    high: int
    """Token ids are in the range [low, high)."""

    def applied(self, ids: NDArray[Any], index: int | str) -> tuple[int, ...]:
        """Return the ids that are sent for the drawn ``ids`` [T] of request ``index``."""
        return self._moved(ids, index, 1)

    def undone(
        self, prompt: tuple[int, ...], index: int | str, shared: Sequence[tuple[str, int]] = ()
    ) -> tuple[int, ...]:
        """Return the drawn ids of a prompt whose segments ``applied`` made.

        ``shared``: the prompt's first segments, which were changed under their own names.
        """
        import numpy as np

        ids, start = np.array(prompt, dtype=np.int64), 0
        found: tuple[int, ...] = ()
        for name, tokens in shared:
            found += self._moved(ids[start : start + tokens], name, -1)
            start += tokens
        return found + self._moved(ids[start:], index, -1)

    def _moved(self, ids: NDArray[Any], index: int | str, sign: int) -> tuple[int, ...]:
        import numpy as np

        size = self.high - self.low
        digest = hashlib.sha256(f"{self.load}|{index}".encode()).digest()
        a, b = (int.from_bytes(digest[i : i + 8], "little") % size for i in (0, 8))
        moved = self.low + (ids - self.low + sign * (a + b * np.arange(len(ids)))) % size
        return tuple(moved.tolist())


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """A request to send."""

    index: int
    scheduled: float
    """Arrival time in seconds since the start of the load."""
    prompt: Prompt
    """Text or token ids; an empty tuple: not made, because a simulation needs only the length."""
    prompt_tokens: int
    output_tokens: int
    """Requested output tokens. Unless lengths are natural, ignore_eos forces them, so that every server does
    the same work."""
    user: str = ""
    """User of the request; empty: no user is sent."""
    shared: tuple[tuple[str, int], ...] = ()
    """Segments at the beginning of the token ids, as of ``Sample.shared``."""
    turn: int = 0
    """Position in a conversation. Above 0, the request is sent after the answer to the request before it."""
    conversation: str = ""
    """Name of the conversation, as of ``Sample.conversation``."""
    think_time: float = 0.0
    """Seconds between that answer and this request."""
    messages: tuple[str, ...] = ()
    """The texts of a conversation up to this question, which chats send; empty: only ``prompt``."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The measured requests in order of arrival, and warm-up requests with other prompts."""

    dataset: str
    """Name of the dataset."""
    rate: float
    """Requests per second; ``inf``: all at once, or a closed loop, which has no rate."""
    seed: int
    requests: tuple[RequestSpec, ...]
    warmup: tuple[RequestSpec, ...] = ()
    arrivals: Arrivals = POISSON
    users: int = 1
    """Number of users that send the requests; 1: requests have no user."""
    shift: Shift | None = None
    """How the token ids of this load differ from the drawn ones; None: they do not."""
    natural_lengths: bool = False
    """Whether the model ends its answers, so that requested lengths are only upper bounds."""

    @property
    def num_prompts(self) -> int:
        """Number of measured requests."""
        return len(self.requests)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every prompt, length, user and arrival time (in microseconds).

        Token ids count as they were drawn, without the shift, which follows from the load. For arrivals other
        than Poisson also over the process and its parameters, because a closed loop has no arrival times.
        """
        process = [] if self.arrivals == POISSON else [f"arrivals {self.arrivals.label}"]
        process += ["natural lengths"] if self.natural_lengths else []
        sent = (f"{round(r.scheduled * 1e6)}|{_request_key(r, self.shift)}" for r in self.requests)
        return _digest([*process, *sent])

    @property
    def prompts_fingerprint(self) -> str:
        """SHA-256 like ``fingerprint``, without the arrivals: equal at all rates of a dataset and seed."""
        return _digest(_request_key(r, self.shift) for r in self.requests)

    def describe(self) -> dict[str, Any]:
        """Return the ``workload`` part of run.json. An infinite rate is written as ``"inf"``."""
        return {
            "dataset": self.dataset,
            "num_prompts": self.num_prompts,
            "rate": self.rate if self.rate != float("inf") else "inf",
            "seed": self.seed,
            "arrivals": self.arrivals.label,
            "arrival_process": {"name": self.arrivals.name, **self.arrivals.parameters},
            "users": self.users,
            **({"natural_lengths": True} if self.natural_lengths else {}),
            "fingerprint": self.fingerprint,
            "prompts_fingerprint": self.prompts_fingerprint,
            "prompt_tokens": sum(r.prompt_tokens for r in self.requests),
            "output_tokens": sum(r.output_tokens for r in self.requests),
        }


def _request_key(request: RequestSpec, shift: Shift | None) -> str:
    prompt = request.prompt
    if isinstance(prompt, str):
        content = f"text {prompt}"
    else:
        prompt = shift.undone(prompt, request.index, request.shared) if shift and prompt else prompt
        content = "ids " + ",".join(map(str, prompt)) if prompt else f"length {request.prompt_tokens}"
    user = f"user {request.user}|" if request.user else ""
    turn = f"turn {request.turn} after {round(request.think_time * 1e6)}|" if request.turn else ""
    return f"{request.output_tokens}|{user}{turn}{content}"


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        piece = part.encode("utf-8", "surrogatepass")
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
