"""Copies KV blocks between the device pool and the host pool while the model computes.

On a GPU, no copy touches bytes that are in use. All steps run in order on one stream: the current stream of
the thread that submits. Each direction of copies has its own stream. The engine may launch step n + 1 while
step n runs. It submits the transfers of a plan only after it launched the steps of all earlier plans. Every
copy waits for all steps that were launched before it was submitted. It follows:

- *The source of an offload* is written only by steps that the offload waits for, because a request that is
  being copied is in no later batch.
- *The target of an upload* is a block that was free when the upload was planned. There are two cases. Either
  its last holder finished, was aborted or lost its KV: then a step in flight may still read and write the
  block (it may even compute a token that is not needed), but that step was launched earlier, so the upload
  waits for it. Or a copy released the block: then that copy has finished.
- *A host block* is used by copies only, and *a step* uses the target of a copy only after the copy. In both
  cases, a block changes its owner only after the host has seen the event recorded after the copy. So the two
  directions never wait for each other, and a step never waits for a copy. The same holds for abandoned
  copies: they run to their end, and their source and target blocks remain reserved until then.

Some copies wait longer than they need to: a copy whose blocks are not used by the step in flight could start
at once and finish one step earlier. But the block freed last is reused first. So a target is usually a block
that the step in flight may still use, and only a search through the entire batch could find the exceptions.
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
"""Seconds between two polls while ``wait`` waits for copies in both directions."""


def copy_engine(device_pool: Tensor, host_pool: Tensor) -> CopyEngine:
    """Return the copy engine for the device of ``device_pool``. A pool's first axis counts its blocks."""
    if device_pool.is_cuda:
        return CudaCopyEngine(device_pool, host_pool)
    return ThreadCopyEngine(device_pool, host_pool)


class _Pools:
    """The device pool and the host pool, with the checks that a transfer between them is valid."""

    def __init__(self, device_pool: Tensor, host_pool: Tensor) -> None:
        if device_pool.shape[1:] != host_pool.shape[1:] or device_pool.dtype != host_pool.dtype:
            raise ValueError("device and host pool must hold the same kind of blocks")
        if not (device_pool.is_contiguous() and host_pool.is_contiguous()):
            raise ValueError("device and host pool must be contiguous")
        self.device, self.host = device_pool, host_pool

    def of(self, transfer: Transfer) -> tuple[Tensor, Tensor]:
        """Return the (source, target) pools. Raises IndexError or ValueError for blocks that do not exist."""
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
    """A worker thread that moves blocks with memmove, in parallel with Python and torch.

    torch's own copy would start a second team of OpenMP threads, which would compete with the model's threads
    for the cores.
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
        """See ``CopyEngine.submit``."""
        with self._changed:
            self._in_flight += 1
        self._queue.put(transfer)

    def done(self) -> list[Transfer]:
        """See ``CopyEngine.done``. Raises RuntimeError if a copy failed."""
        with self._changed:
            return self._take()

    def wait(self) -> list[Transfer]:
        """See ``CopyEngine.wait``. Raises RuntimeError if a copy failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure or not self._in_flight)
            return self._take()

    def close(self) -> None:
        """Finish all submitted transfers, then end the thread."""
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
    """Copies on CUDA streams: one for each direction, separate from the compute stream.

    The host pool must be pinned. Within a direction, transfers finish in the order of submission.
    """

    def __init__(self, device_pool: Tensor, host_pool: Tensor, cuda: Any = torch.cuda) -> None:
        """``cuda`` is ``torch.cuda``, or its replacement in a test."""
        self._pools = _Pools(device_pool, host_pool)
        self._cuda, self._device = cuda, device_pool.device
        directions: tuple[Direction, ...] = ("offload", "upload")
        self._streams = {direction: cuda.Stream(self._device) for direction in directions}
        self._in_flight: dict[Direction, deque[tuple[Transfer, Any]]] = {d: deque() for d in directions}
        self._spare_events: list[Any] = []

    def submit(self, transfer: Transfer) -> None:
        """See ``CopyEngine.submit``. Raises RuntimeError if a block does not exist or the GPU has failed."""
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
        """See ``CopyEngine.done``. Raises RuntimeError if a copy failed."""
        finished = []
        with _copies_fail_loudly():
            for queue in self._in_flight.values():
                while queue and queue[0][1].query():
                    transfer, event = queue.popleft()
                    self._spare_events.append(event)
                    finished.append(transfer)
        return finished

    def wait(self) -> list[Transfer]:
        """See ``CopyEngine.wait``: waits until a copy of either direction has finished."""
        first = [queue[0][1] for queue in self._in_flight.values() if queue]
        if not first:
            return []
        if len(first) == 1:
            with _copies_fail_loudly():
                first[0].synchronize()
        while not (finished := self.done()):
            time.sleep(POLL_SECONDS)  # CUDA cannot wait for the first of two events
        return finished

    def close(self) -> None:
        """Wait for the copies in flight. The pools may be freed after this call."""
        for stream in self._streams.values():
            with suppress(RuntimeError):  # a failed GPU copies nothing more; ``done`` raises the reason
                stream.synchronize()


def runs(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (first source block, first target block, number of blocks) of each contiguous run.

    Each run is one copy. A launch costs the CPU some microseconds, whatever the size of the copy.
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
