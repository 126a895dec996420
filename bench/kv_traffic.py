"""KV copies between device and host, a few in each direction at a time, and how fast they go."""

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
"""Transfers a direction at a time: the next is there when one ends, as with more than one victim."""
BANDWIDTH_TRANSFERS = 24
"""Each way, of a request's size: 10 GB of OPT-13B's KV, 0.2 s at 50 GB/s."""
BOTH: tuple[Direction, ...] = ("offload", "upload")


class Traffic:
    """Transfers of one request's KV on blocks that no step uses, a few in each direction at a time."""

    def __init__(self, runner: TorchRunner, tokens: int, taken: set[int]) -> None:
        """Raises ValueError where there are not blocks for it."""
        size = blocks_for(runner, tokens)
        spare = (block for block in range(runner.num_device_blocks) if block not in taken)
        host = iter(range(runner.num_host_blocks))
        self._places: dict[Direction, Iterator[tuple[list[int], list[int]]]] = {}
        for kind in BOTH:
            pairs = [  # for those in flight, and for those that follow
                (list(itertools.islice(spare, size)), list(itertools.islice(host, size)))
                for _ in range(2 * IN_FLIGHT)
            ]
            if len(pairs[-1][0]) < size or len(pairs[-1][1]) < size:
                raise ValueError(
                    f"the pools have no {2 * IN_FLIGHT * len(BOTH)} times {size} blocks beside the steps'"
                )
            self._places[kind] = itertools.cycle(pairs)
        self._copies = runner.copies
        self._ids = itertools.count()
        self.transfer_bytes = size * runner.block_bytes
        self.in_flight: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def fill(self, kinds: Sequence[Direction] = BOTH) -> None:
        for kind in kinds:
            while self.in_flight[kind] < IN_FLIGHT:
                device, host = next(self._places[kind])
                source, target = (device, host) if kind == "offload" else (host, device)
                number = next(self._ids)
                self._copies.submit(Transfer(number, f"swapped-{number}", kind, source, target))
                self.in_flight[kind] += 1

    def collect(self, wait: bool = False) -> None:
        for transfer in self._copies.wait() if wait else self._copies.done():
            self.in_flight[transfer.direction] -= 1
            self.done[transfer.direction] += 1

    def drain(self) -> None:
        while self.in_flight.total():
            self.collect(wait=True)


def bandwidth(device: torch.device, traffic: Traffic, kinds: Sequence[Direction]) -> dict[str, float]:
    """Bytes per second by direction; all are kept busy until each has moved what is wanted."""
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
