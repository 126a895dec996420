"""Copies KV blocks between the device pool and the host pool while the model computes."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from queue import SimpleQueue

import torch
from torch import Tensor

from fgengine.kv.transfer import CopyEngine, Transfer


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
    """A CUDA stream for each direction, beside the one that computes. The host pool should be pinned."""

    def __init__(self, device_pool: Tensor, host_pool: Tensor) -> None:
        self._pools = _Pools(device_pool, host_pool)
        self._device = device_pool.device
        self._streams = {
            kind: torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            for kind in ("offload", "upload")
        }
        self._in_flight: deque[tuple[Transfer, torch.cuda.Event]] = deque()

    def submit(self, transfer: Transfer) -> None:
        try:
            source, target = self._pools.of(transfer)
        except (IndexError, ValueError) as failure:
            raise RuntimeError(f"a copy of KV blocks failed: {failure}") from failure
        stream = self._streams[transfer.direction]
        # The blocks may still be written (or, as a target, read) by a step that was launched before.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for from_block, to_block in zip(transfer.source, transfer.target, strict=True):
                target[to_block].copy_(source[from_block], non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        self._in_flight.append((transfer, event))

    def done(self) -> list[Transfer]:
        """As ``CopyEngine.done``."""
        finished = []
        for _ in range(len(self._in_flight)):
            transfer, event = self._in_flight.popleft()
            if event.query():  # type: ignore[no-untyped-call]
                finished.append(transfer)
            else:
                self._in_flight.append((transfer, event))
        return finished

    def wait(self) -> list[Transfer]:
        """As ``CopyEngine.wait``."""
        if self._in_flight:
            self._in_flight[0][1].synchronize()
        return self.done()

    def close(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()
