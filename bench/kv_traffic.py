"""Submits KV copies between device and host, a few in each direction at a time, and measures their rate."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from step_times import blocks_for

from fgengine.execution.runner import TorchRunner
from fgengine.kv.transfer import Direction, Transfer

IN_FLIGHT = 2
"""Transfers in flight in each direction: when one ends, the next is queued, as with several evictions."""
BANDWIDTH_TRANSFERS = 24
"""Transfers that are timed in each direction, each of one request: 10 GB for OPT-13B, 0.2 s at 50 GB/s."""
BOTH: tuple[Direction, ...] = ("offload", "upload")


class Traffic:
    """Transfers of one request's KV, a few in each direction at a time, on blocks that no step uses."""

    def __init__(self, runner: TorchRunner, tokens: int, taken: set[int]) -> None:
        """Raises ValueError if there are too few blocks.

        Args:
            tokens: tokens of the request.
            taken: blocks that steps use.
        """
        size = blocks_for(runner, tokens)
        spare = (block for block in range(runner.num_device_blocks) if block not in taken)
        host = iter(range(runner.num_host_blocks))
        self._places: dict[Direction, Iterator[tuple[list[int], list[int]]]] = {}
        for kind in BOTH:
            pairs = [  # twice as many as in flight: the next transfers use other blocks
                (list(itertools.islice(spare, size)), list(itertools.islice(host, size)))
                for _ in range(2 * IN_FLIGHT)
            ]
            if len(pairs[-1][0]) < size or len(pairs[-1][1]) < size:
                raise ValueError(
                    f"the pools have no {2 * IN_FLIGHT * len(BOTH)} x {size} free blocks: enlarge them"
                )
            self._places[kind] = itertools.cycle(pairs)
        self._copies = runner.copies
        self._ids = itertools.count()
        self.transfer_bytes = size * runner.block_bytes
        self.in_flight: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def fill(self, kinds: Sequence[Direction] = BOTH) -> None:
        """Submit transfers until ``IN_FLIGHT`` are in flight in each of the directions."""
        for kind in kinds:
            while self.in_flight[kind] < IN_FLIGHT:
                device, host = next(self._places[kind])
                source, target = (device, host) if kind == "offload" else (host, device)
                number = next(self._ids)
                self._copies.submit(Transfer(number, f"copied-{number}", kind, source, target))
                self.in_flight[kind] += 1

    def collect(self, wait: bool = False) -> None:
        """Count the finished transfers; ``wait``: wait until at least one has finished."""
        for transfer in self._copies.wait() if wait else self._copies.done():
            self.in_flight[transfer.direction] -= 1
            self.done[transfer.direction] += 1

    def drain(self) -> None:
        """Wait for all transfers."""
        while self.in_flight.total():
            self.collect(wait=True)


def bandwidth(device: torch.device, traffic: Traffic, kinds: Sequence[Direction]) -> dict[str, float]:
    """Return the bytes per second of each direction.

    All directions copy until each has finished ``BANDWIDTH_TRANSFERS`` transfers.
    """
    traffic.fill(kinds)
    traffic.drain()  # the first touch of pinned memory is slower
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    before, began = traffic.done.copy(), time.perf_counter()
    rates: dict[str, float] = {}
    while len(rates) < len(kinds):
        traffic.fill(kinds)
        traffic.collect(wait=True)
        for kind in kinds:
            moved = traffic.done[kind] - before[kind]
            if kind not in rates and moved >= BANDWIDTH_TRANSFERS:
                rates[kind] = moved * traffic.transfer_bytes / (time.perf_counter() - began)
    traffic.drain()
    return rates
