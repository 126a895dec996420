"""A fake GPU: the work of its streams runs late, in any order that events allow."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class FakeCuda:
    """The part of ``torch.cuda`` that copying needs. Nothing runs before a query or a wait."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.streams: list[FakeStream] = []
        self.compute = self.Stream()
        self.events_made = 0
        self._current = self.compute

    def Stream(self, device: torch.device | None = None) -> FakeStream:
        stream = FakeStream(self, speed=self.random.choice([1, 5, 40]))
        self.streams.append(stream)
        return stream

    def Event(self) -> FakeEvent:
        self.events_made += 1
        return FakeEvent(self)

    def current_stream(self, device: torch.device | None = None) -> FakeStream:
        return self._current

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self._current = self._current, stream
        with _Later(stream):
            yield
        self._current = before

    def advance(self, pieces: int) -> bool:
        """Run up to ``pieces`` pieces of work. Returns whether any ran."""
        for done in range(pieces):
            ready = [stream for stream in self.streams if stream.can_go_on]
            if not ready:
                return done > 0
            (stream,) = self.random.choices(ready, [stream.speed for stream in ready])
            stream.work.popleft()[1]()
        return True


class FakeStream:
    def __init__(self, cuda: FakeCuda, speed: int) -> None:
        self.cuda, self.speed = cuda, speed
        self.stalled = False
        self.work: deque[tuple[Callable[[], bool], Callable[[], object]]] = deque()
        """Pairs of (whether the piece may run now, the piece of work)."""

    @property
    def can_go_on(self) -> bool:
        return bool(self.work) and not self.stalled and self.work[0][0]()

    def queue(self, piece: Callable[[], object], ready: Callable[[], bool] = lambda: True) -> None:
        self.work.append((ready, piece))

    def wait_stream(self, other: FakeStream) -> None:
        event = FakeEvent(self.cuda)
        event.record(other)
        mark = event.mark
        assert mark is not None
        self.queue(lambda: None, ready=lambda: mark.reached)

    def synchronize(self) -> None:
        while self.work:
            assert self.cuda.advance(1), "the GPU hangs"


class _Mark:
    reached = False

    def reach(self) -> None:
        self.reached = True


class FakeEvent:
    """An event that reports its last recording only, as CUDA's events do."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.mark: _Mark | None = None

    def record(self, stream: FakeStream) -> None:
        self.mark = _Mark()
        stream.queue(self.mark.reach)

    def query(self) -> bool:
        self.cuda.advance(self.cuda.random.randrange(4))
        return self.mark is None or self.mark.reached

    def synchronize(self) -> None:
        while self.mark is not None and not self.mark.reached:
            assert self.cuda.advance(1), "the GPU hangs"


class _Later(TorchDispatchMode):
    """Queues copies as a stream's work, row by row, because a real copy is not atomic."""

    def __init__(self, stream: FakeStream) -> None:
        super().__init__()
        self.fake_stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.copy_.default:
            return func(*args, **(kwargs or {}))
        target, source, non_blocking = args
        assert non_blocking, "the CPU would wait for this copy"
        assert target.shape == source.shape
        for row in range(len(target)):
            self.fake_stream.queue(partial(target[row].copy_, source[row].detach()))
        return target


@pytest.fixture
def fake_cuda() -> Callable[[int], FakeCuda]:
    """Create a fake GPU from a seed, which decides the speed of its streams and the order of the work."""
    return FakeCuda
