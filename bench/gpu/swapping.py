"""How fast KV is copied each way and both ways at once, and what that costs the steps beside it."""

from __future__ import annotations

import itertools
import statistics
import time as clock
from collections import Counter
from collections.abc import Iterator, Sequence

from fgengine.execution.runner import TorchRunner
from fgengine.kv.transfer import Direction, Transfer
from fgengine.units import seconds
from gpu.budget import Allowance
from gpu.report import Columns, Findings, Target
from gpu.setting import Setting
from gpu.step_times import blocks_for, periods, plan_of

MOST_SLOWDOWN = 0.03
IN_FLIGHT = 2
"""Transfers a direction at a time: the next is there when one ends, as with more than one victim."""
BANDWIDTH_TRANSFERS = 24
"""Request-sized each way: 10 GB of OPT-13B's KV, 0.2 s at 50 GB/s."""
BOTH: tuple[Direction, ...] = ("offload", "upload")

TITLE = "(c) swapping"
COLUMNS: Columns = {
    "model": lambda row: row["model"],
    "what": lambda row: row["what"],
    "bytes a transfer": lambda row: f"{row['transfer_bytes'] / 1e6:.1f} MB",
    "GB/s": lambda row: f"{row['bytes_per_second'] / 1e9:.1f}",
    "step": lambda row: seconds(row.get("seconds")),
    "slower by": lambda row: f"{row['slowdown']:+.1%}" if "slowdown" in row else "-",
}


def run(setting: Setting, findings: Findings, time: Allowance, model: str) -> None:
    runner = setting.runner(model)
    traffic = Traffic(runner, setting.scale.judged_context, _decoding(setting, runner))
    for kinds in (("offload",), ("upload",), BOTH):
        rate = _bandwidth(setting, runner, traffic, kinds)
        findings.row(
            model=model,
            what=" and ".join(kinds),
            transfer_bytes=traffic.transfer_bytes,
            bytes_per_second=sum(rate.values()),
            by_direction=rate,
        )
    if not time.enough_for(5.0 if setting.on_gpu else 0.0):
        findings.note("the time for this section is spent: left out decoding while swapping")
        return
    _beside_decoding(setting, findings, runner, traffic, model)


class Traffic:
    """Transfers of one request's KV on blocks that no step uses, a few in each direction at a time."""

    def __init__(self, runner: TorchRunner, tokens: int, taken: set[int]) -> None:
        """Raises ValueError where there are not blocks for it."""
        size = blocks_for(runner, tokens)
        spare = (block for block in range(runner.num_device_blocks) if block not in taken)
        host = iter(range(runner.num_host_blocks))
        places = 2 * len(BOTH) * IN_FLIGHT  # those in flight, and those that follow
        self._places: dict[Direction, Iterator[tuple[Sequence[int], Sequence[int]]]] = {}
        for kind in BOTH:
            pairs = [
                (list(itertools.islice(spare, size)), list(itertools.islice(host, size)))
                for _ in range(places // 2)
            ]
            if len(pairs[-1][0]) < size or len(pairs[-1][1]) < size:
                raise ValueError(f"the pools have no {places} times {size} blocks beside the steps'")
            self._places[kind] = itertools.cycle(pairs)
        self._copies = runner.copies
        self._ids = itertools.count()
        self.transfer_bytes = size * runner.block_bytes
        self.in_flight: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def submit(self, kind: Direction) -> None:
        device, host = next(self._places[kind])
        source, target = (device, host) if kind == "offload" else (host, device)
        number = next(self._ids)
        self._copies.submit(Transfer(number, f"swapped-{number}", kind, source, target))
        self.in_flight[kind] += 1

    def fill(self, kinds: Sequence[Direction] = BOTH) -> None:
        for kind in kinds:
            while self.in_flight[kind] < IN_FLIGHT:
                self.submit(kind)

    def collect(self, wait: bool = False) -> None:
        for transfer in self._copies.wait() if wait else self._copies.done():
            self.in_flight[transfer.direction] -= 1
            self.done[transfer.direction] += 1

    def drain(self) -> None:
        while self.in_flight.total():
            self.collect(wait=True)


def _decoding(setting: Setting, runner: TorchRunner) -> set[int]:
    plan = plan_of(runner, setting.scale.judged_batch, setting.scale.judged_context, 1)
    return {block for item in plan.items for block in item.blocks}


def _bandwidth(
    setting: Setting, runner: TorchRunner, traffic: Traffic, kinds: Sequence[Direction]
) -> dict[str, float]:
    """Bytes per second by direction; all are kept busy until each has moved what is wanted."""
    traffic.fill(kinds)
    traffic.drain()  # the first touch of pinned memory is slower
    setting.synchronize()
    before = traffic.done.copy()
    began = clock.perf_counter()
    ended: dict[str, float] = {}
    while len(ended) < len(kinds):
        traffic.fill(kinds)
        traffic.collect(wait=True)
        for kind in kinds:
            if kind not in ended and traffic.done[kind] - before[kind] >= BANDWIDTH_TRANSFERS:
                moved = traffic.done[kind] - before[kind]
                ended[kind] = moved * traffic.transfer_bytes / (clock.perf_counter() - began)
    traffic.drain()
    return ended


def _beside_decoding(
    setting: Setting, findings: Findings, runner: TorchRunner, traffic: Traffic, model: str
) -> None:
    """In turns, so that what drifts touches both. Steps follow one another as in the engine, and the copies
    are submitted in between as there."""
    scale = setting.scale
    plan = plan_of(runner, scale.judged_batch, scale.judged_context, 1)
    alone: list[float] = []
    beside: list[float] = []

    def keep_copying() -> None:
        traffic.collect()
        traffic.fill()

    periods(runner, plan, 3)
    moved, swapping_seconds = 0, 0.0
    for _ in range(scale.swap_rounds):
        alone += periods(runner, plan, scale.swap_steps)
        traffic.fill()
        before, began = traffic.done.total(), clock.perf_counter()
        beside += periods(runner, plan, scale.swap_steps, keep_copying)
        traffic.collect(wait=traffic.done.total() == before)  # on a busy machine none may have ended yet
        swapping_seconds += clock.perf_counter() - began
        moved += traffic.done.total() - before
        traffic.drain()
    slowdown = statistics.median(beside) / statistics.median(alone) - 1.0
    what = f"decode of {scale.judged_batch} at context {scale.judged_context}"
    common = {"model": model, "transfer_bytes": traffic.transfer_bytes}
    findings.row(**common, what=f"{what}, alone", bytes_per_second=0.0, seconds=statistics.median(alone))
    findings.row(
        **common,
        what=f"{what}, swapping both ways",
        bytes_per_second=moved * traffic.transfer_bytes / swapping_seconds,
        seconds=statistics.median(beside),
        slowdown=slowdown,
    )
    findings.details |= {"steps_alone": alone, "steps_while_swapping": beside}
    target = f"{model}, {what}: slowed by swapping both ways, as a share"
    findings.targets.append(Target(target, slowdown, MOST_SLOWDOWN, judged=setting.on_gpu))
