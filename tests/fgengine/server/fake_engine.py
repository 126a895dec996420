"""A fake engine that repeats the prompt: for the server's tests, in a thread or as a separate process."""

from __future__ import annotations

import os
import signal
import time
from array import array
from collections.abc import Callable
from typing import Any

from fgengine.config import EngineConfig
from fgengine.plan import TokenEvent
from fgengine.prompt_logprobs import PromptLogprobs
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.refusal import RequestRefused

VOCAB_SIZE = 261
REFUSED_MODEL = "opt-350m"
"""A model of the catalog whose engine cannot start."""
MAX_MODEL_LEN = 4096
BREAK, CRASH, EOS, WAIT, KILL = 256, 257, 258, 259, 260
"""Special prompt tokens. BREAK raises an error in the request's first step. CRASH exits the process. EOS ends
the answer after one repetition of the prompt. WAIT stops after one token until the request is aborted. KILL
kills the process."""


class FakeEngine:
    """An engine whose answers repeat the prompt's tokens."""

    model_name = "fake"
    vocab_size = VOCAB_SIZE
    max_model_len = MAX_MODEL_LEN
    longest_step = 0.0
    room: int | None = None

    def __init__(self, step_seconds: float = 0.001) -> None:
        self.step_seconds = step_seconds
        self.requests: dict[str, Request] = {}
        self.users: list[str] = []
        """The user of every request, in order of arrival."""
        self.params: list[SamplingParams] = []
        """The sampling parameters of every request, in order of arrival."""
        self.aborted: list[str] = []
        self.closed = False
        self.refuse: Exception | None = None
        """The exception that ``add`` raises."""
        self.retry_after: float | None = None
        self.expired: list[Any] = []
        """(request, exception) of each request to drop before the next step."""

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(
        self, id: str, prompt: list[int], params: SamplingParams, *, user: str, arrival: float
    ) -> Request:
        if self.refuse is not None:
            raise self.refuse
        if not prompt:
            raise RequestRefused("the prompt is empty; it needs at least one token", "prompt")
        if not all(0 <= token < VOCAB_SIZE for token in prompt):
            raise RequestRefused(f"the prompt has token ids outside 0 .. {VOCAB_SIZE - 1}", "prompt")
        request = Request.new(id, prompt, params, arrival, user)
        if request.max_context > self.max_model_len:
            raise RequestRefused(
                f"prompt + max_tokens is {request.max_context}, more than {self.max_model_len}", "prompt"
            )
        self.requests[id] = request
        self.users.append(user)
        self.params.append(params)
        return request

    def prepare(self, params: SamplingParams) -> None:
        return None

    def abort(self, id: str) -> bool:
        request = self.requests.pop(id, None)
        if request is None:
            return False
        request.finish("abort", time.monotonic())
        self.aborted.append(id)
        return True

    def expire(self) -> list[Any]:
        expired, self.expired = self.expired, []
        for request, _ in expired:
            del self.requests[request.id]
        return expired

    def step(self) -> list[TokenEvent]:
        time.sleep(self.step_seconds)
        events = []
        for request in list(self.requests.values()):
            prompt = request.tokens[: request.prompt_len]
            if BREAK in prompt:
                raise RuntimeError("the fake broke")
            if CRASH in prompt:
                os._exit(9)
            if KILL in prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            if WAIT in prompt and request.num_generated:
                continue
            token = prompt[request.num_generated % request.prompt_len]
            request.tokens.append(token)
            if request.num_generated == request.params.max_tokens:
                request.finish("length", time.monotonic())
            if token == EOS or token in request.params.stop_token_ids:
                request.finish("stop", time.monotonic())
            if request.finished:
                del self.requests[request.id]
            params = request.params
            top = _top(token, params.top_logprobs) if params.top_logprobs else None
            first = request.num_generated == 1 and params.prompt_logprobs is not None
            scored = _scored(prompt, params.prompt_logprobs or 0) if first else None
            events.append(TokenEvent(request, token, -0.5 if params.logprobs else None, top, scored))
        return events

    def stats(self) -> dict[str, Any]:
        return {
            "free_device_blocks": 100 - len(self.requests),
            "num_device_blocks": 100,
            "levels": [{"name": "Q1", "requests": len(self.requests), "quantum": 0.5}],
            "policy": "fake",
        }

    def close(self) -> None:
        self.closed = True


def _top(token: int, count: int) -> list[tuple[int, float]]:
    """Return the token and those after it; each is less probable than the one before."""
    return [((token + i) % 256, -0.5 - i) for i in range(count)]


def _scored(prompt: list[int], count: int) -> PromptLogprobs:
    """Return the prompt's tokens, each as probable as if it had been generated."""
    top = [one for token in prompt[1:] for one in _top(token, count)]
    return PromptLogprobs(
        0,
        count,
        array("f", [-0.5] * (len(prompt) - 1)),
        array("i", [token for token, _ in top]),
        array("f", [logprob for _, logprob in top]),
    )


def make_fake(config: EngineConfig, report: Callable[[str], None]) -> FakeEngine:
    report("pretending to load")
    if config.model == REFUSED_MODEL:
        raise ValueError("there is no such model")
    return FakeEngine(step_seconds=config.starvation_limit / 1e4)


if __name__ == "__main__":
    from fgengine.server import worker

    worker._load_engine = make_fake
    worker.main()
