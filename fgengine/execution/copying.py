"""Copies KV blocks between the device pool and the host pool while the model computes.

Why no copy on a GPU meets bytes that are in use. All steps run in order on one stream, the one that is
current in the thread that submits; each direction of copies has a stream of its own. The engine may launch
step n + 1 while step n runs, but submits a plan's transfers only after the steps of all earlier plans were
launched, and every copy waits for all steps launched before it was submitted. Then

- *an offload's source* is written by no step that it does not wait for: who is being copied is in no later
  batch;
- *an upload's target* is a block that was free when it was planned. Either its last holder ended, was aborted
  or was thrown away: then a step in flight may still read and write it (one launched too early even computes
  a token that nobody wants), but it was launched before, and is waited for. Or a copy gave it back: that one
  is over;
- *a host block* is touched by copies alone, and *a step* takes blocks out of a copy only after it. In both
  cases they change hands only once the host has seen the event that stands behind the copy, so the two
  directions never wait for each other, nor a step for a copy. This goes for abandoned copies as well: they
  run to their end, and both of their ends are kept until then.

The wait is wider than some copies need: one whose blocks the step in flight does not touch could begin at
once, and be done a step sooner. But free blocks are handed out last freed first, so a target is most often
just what the step in flight may still use, and only a look through its whole batch could tell.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from fgengine.kv.transfer import CopyEngine, Direction, Transfer

POLL_SECONDS = 5e-5
"""Between two looks at copies in both directions, when nothing else is to be done."""


def copy_engine(device_pool: Tensor, host_pool: Tensor) -> CopyEngine:
    """The engine for where the device pool stands. A pool's first axis counts its blocks."""
    if device_pool.is_cuda:
        return CudaCopyEngine(device_pool, host_pool)
    return ThreadCopyEngine(device_pool, host_pool)


class _Pools:
    """The two pools, and what makes a transfer between them legal."""

    def __init__(self, device_pool: Tensor, host_pool: Tensor) -> None:
        if device_pool.shape[1:] != host_pool.shape[1:] or device_pool.dtype != host_pool.dtype:
            raise ValueError("device and host pool must hold the same kind of blocks")
        if not (device_pool.is_contiguous() and host_pool.is_contiguous()):
            raise ValueError("device and host pool must be contiguous")
        self.device, self.host = device_pool, host_pool

    def of(self, transfer: Transfer) -> tuple[Tensor, Tensor]:
        """(source, target) pool. Raises IndexError or ValueError for blocks that are not there."""
        source, target = self.device, self.host
        if transfer.direction == "upload":
            source, target = target, source
        if len(transfer.source) != len(transfer.target):
            raise ValueError(f"{len(transfer.source)} blocks cannot go onto {len(transfer.target)}")
        for name, pool, blocks in (("source", source, transfer.source), ("target", target, transfer.target)):
            if blocks and not (min(blocks) >= 0 and max(blocks) < len(pool)):
                raise IndexError(f"a {name} block of {list(blocks)} is outside the pool of {len(pool)}")
        return source, target


class ThreadCopyEngine:
    """One worker thread that moves blocks with memmove, which runs beside Python and torch.

    torch's own copy would start a second team of OpenMP threads and fight the model's over the cores.
    """

    def __init__(self, device_pool: Tensor, host_pool: Tensor) -> None:
        self._pools = _Pools(device_pool, host_pool)
        self._queue: SimpleQueue[Transfer | None] = SimpleQueue()
        self._changed = threading.Condition()
        self._finished: deque[Transfer] = deque()
        self._in_flight = 0
        self._failure: BaseException | None = None
        self._worker = threading.Thread(target=self._work, name="kv-copies", daemon=True)
        self._worker.start()

    def submit(self, transfer: Transfer) -> None:
        with self._changed:
            self._in_flight += 1
        self._queue.put(transfer)

    def done(self) -> list[Transfer]:
        """As ``CopyEngine.done``."""
        with self._changed:
            return self._take()

    def wait(self) -> list[Transfer]:
        """As ``CopyEngine.wait``."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure or not self._in_flight)
            return self._take()

    def close(self) -> None:
        """Finishes what was submitted, then ends the thread."""
        self._queue.put(None)
        self._worker.join()

    def _take(self) -> list[Transfer]:
        if self._failure is not None:
            raise RuntimeError(f"a copy of KV blocks failed: {self._failure}") from self._failure
        finished = list(self._finished)
        self._finished.clear()
        self._in_flight -= len(finished)
        return finished

    def _work(self) -> None:
        while (transfer := self._queue.get()) is not None:
            try:
                self._copy(transfer)
            except Exception as failure:
                with self._changed:
                    self._failure = failure
                    self._changed.notify_all()
                return
            with self._changed:
                self._finished.append(transfer)
                self._changed.notify_all()

    def _copy(self, transfer: Transfer) -> None:
        source, target = self._pools.of(transfer)
        size = source.stride(0) * source.element_size()
        for from_block, to_block in zip(transfer.source, transfer.target, strict=True):
            ctypes.memmove(target.data_ptr() + to_block * size, source.data_ptr() + from_block * size, size)


class CudaCopyEngine:
    """A CUDA stream for each direction, beside the one that computes. The host pool is to be pinned.

    Within a direction transfers end in the order in which they were submitted.
    """

    def __init__(self, device_pool: Tensor, host_pool: Tensor, cuda: Any = torch.cuda) -> None:
        """``cuda`` is ``torch.cuda``, or what a test puts in its place."""
        self._pools = _Pools(device_pool, host_pool)
        self._cuda, self._device = cuda, device_pool.device
        directions: tuple[Direction, ...] = ("offload", "upload")
        self._streams = {direction: cuda.Stream(self._device) for direction in directions}
        self._in_flight: dict[Direction, deque[tuple[Transfer, Any]]] = {d: deque() for d in directions}
        self._spare_events: list[Any] = []

    def submit(self, transfer: Transfer) -> None:
        """Raises RuntimeError for blocks that are not there, or when the GPU has failed."""
        with _copies_fail_loudly():
            source, target = self._pools.of(transfer)
            stream = self._streams[transfer.direction]
            stream.wait_stream(self._cuda.current_stream(self._device))
            event = self._spare_events.pop() if self._spare_events else self._cuda.Event()
            with self._cuda.stream(stream):
                for old, new, count in runs(transfer.source, transfer.target):
                    target[new : new + count].copy_(source[old : old + count], non_blocking=True)
                event.record(stream)
        self._in_flight[transfer.direction].append((transfer, event))

    def done(self) -> list[Transfer]:
        """As ``CopyEngine.done``."""
        finished = []
        with _copies_fail_loudly():
            for queue in self._in_flight.values():
                while queue and queue[0][1].query():
                    transfer, event = queue.popleft()
                    self._spare_events.append(event)
                    finished.append(transfer)
        return finished

    def wait(self) -> list[Transfer]:
        """As ``CopyEngine.wait``: until the first copy of either direction has finished."""
        first = [queue[0][1] for queue in self._in_flight.values() if queue]
        if not first:
            return []
        if len(first) == 1:
            with _copies_fail_loudly():
                first[0].synchronize()
        while not (finished := self.done()):
            time.sleep(POLL_SECONDS)  # CUDA cannot wait for whichever of two events comes first
        return finished

    def close(self) -> None:
        """Lets the copies end: the pools may be freed after it."""
        for stream in self._streams.values():
            with suppress(RuntimeError):  # a GPU that has failed copies nothing any more; ``done`` says why
                stream.synchronize()


def runs(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first source block, first target block, how many) of every run that goes over in one piece.

    A copy costs the CPU some microseconds to launch, whatever its size.
    """
    first = after = (-1, -1)
    for pair in sorted(zip(source, target, strict=True)):
        if pair != after:
            if after[0] > first[0]:
                yield *first, after[0] - first[0]
            first = pair
        after = pair[0] + 1, pair[1] + 1
    if after[0] > first[0]:
        yield *first, after[0] - first[0]


@contextmanager
def _copies_fail_loudly() -> Iterator[None]:
    try:
        yield
    except Exception as failure:
        raise RuntimeError(f"a copy of KV blocks failed: {failure}") from failure
