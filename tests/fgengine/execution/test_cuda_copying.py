"""Copies during a running step: no block is read, written or reused too early.

The GPU is a fake one whose streams lag at random. The order of actions is the overlapped engine's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch

from fgengine.execution.copying import CudaCopyEngine, runs
from fgengine.kv.manager import KVManager, Where
from fgengine.kv.transfer import Direction, Transfer

MakeCuda = Callable[[int], Any]
BLOCK = 4
POISON = -1
OFFLOAD: Direction = "offload"
UPLOAD: Direction = "upload"


@dataclass
class Item:
    """One request's part of a step: it reads its earlier tokens and writes its new ones."""

    id: str
    start: int
    tokens: int
    table: tuple[int, ...]
    life: int


@dataclass
class Step:
    items: list[Item]
    end: Any
    """The event recorded after the step."""


@dataclass
class Traffic:
    """A model of the engine with one step in flight.

    It plans, submits transfers and launches; only then it reads the result of the step before. Every token's
    slot holds a unique number. A step appends a message to ``wrong`` if it reads another number.
    """

    cuda: Any
    seed: int
    device_blocks: int = 14
    host_blocks: int = 12
    wrong: list[str] = field(default_factory=list)
    uploaded: int = 0
    in_flight: Step | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens whose KV exists after the step in flight."""
    lives: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.kv = KVManager(self.device_blocks, self.host_blocks, BLOCK)
        self.device = torch.full((self.device_blocks, BLOCK), POISON)
        self.host = torch.full((self.host_blocks, BLOCK), POISON)
        self.copies = CudaCopyEngine(self.device, self.host, self.cuda)
        self.births, self.names = count(1), count()

    def iterate(self) -> None:
        self.finish(self.copies.done())
        if self.random.random() < 0.1 and self.lengths:
            self.end(self.random.choice(sorted(self.lengths)))  # aborted, wherever its KV is
        batch, transfers = self.plan()
        for transfer in transfers:
            self.copies.submit(transfer)
        before, self.in_flight = self.in_flight, self.launch(batch)
        if before is not None:
            before.end.synchronize()
            for item in before.items:
                if self.lives.get(item.id) == item.life and self.random.random() < 0.15:
                    self.end(item.id)  # its last token came; the step in flight computes one token too many
        self.kv.check()

    def finish(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            abandoned = transfer.request_id not in self.lives
            self.kv.finish(transfer)
            offload = transfer.direction == OFFLOAD
            source, target = (self.device, self.host) if offload else (self.host, self.device)
            if offload or abandoned:
                source[list(transfer.source)] = POISON  # an upload does not free the host's copy
            if abandoned:
                target[list(transfer.target)] = POISON
            self.uploaded += not offload and not abandoned

    def end(self, id: str) -> None:
        self.kv.release(id)
        del self.lengths[id], self.lives[id]

    def plan(self) -> tuple[list[Item], list[Transfer]]:
        kv, batch, transfers = self.kv, [], []
        if len(self.lengths) < 7:
            id = str(next(self.names))
            self.lengths[id], self.lives[id] = 0, next(self.births)
        for id in self.random.sample(sorted(self.lengths), len(self.lengths)):
            where, choice = kv.where(id), self.random.random()
            if where is Where.DEVICE and choice < 0.25 and kv.num_blocks(id) <= kv.host_available:
                transfer = kv.begin_offload(id, self.lengths[id])
                transfers += [transfer] if transfer else []
            elif where is Where.DEVICE and choice < 0.35:  # evicted, to be recomputed
                kv.release(id)
                self.lengths[id], self.lives[id] = 0, next(self.births)
            elif where is Where.HOST and choice < 0.7 and kv.num_blocks(id) <= kv.device.num_free:
                transfers.append(kv.begin_upload(id))
            elif where in (Where.DEVICE, Where.NOWHERE) and choice < 0.8:
                start = self.lengths[id]
                tokens = 1 if start else self.random.randint(1, 3 * BLOCK)
                if start + tokens <= 5 * BLOCK and kv.missing(id, start + tokens) <= kv.device.num_free:
                    kv.grow(id, start + tokens)
                    batch.append(Item(id, start, tokens, tuple(kv.table(id)), self.lives[id]))
                    self.lengths[id] = start + tokens
        return batch, transfers

    def launch(self, batch: list[Item]) -> Step:
        for item in batch:
            for position in range(item.start + item.tokens):
                work = self.read if position < item.start else self.write
                self.cuda.compute.queue(partial(work, item, position))
        step = Step(batch, self.cuda.Event())
        step.end.record(self.cuda.compute)
        return step

    def write(self, item: Item, position: int) -> None:
        self.device[item.table[position // BLOCK], position % BLOCK] = 1000 * item.life + position

    def read(self, item: Item, position: int) -> None:
        found = int(self.device[item.table[position // BLOCK], position % BLOCK])
        if found != 1000 * item.life + position:
            self.wrong.append(f"token {position} of {item.id}'s life {item.life}: {found}")


@pytest.mark.slow
def test_every_step_reads_what_was_written_whichever_stream_lags(fake_cuda: MakeCuda) -> None:
    uploads = 0
    for seed in range(40):
        traffic = Traffic(fake_cuda(seed), seed)
        for _ in range(60):
            traffic.iterate()
            assert traffic.wrong == []
        traffic.copies.close()
        traffic.finish(traffic.copies.done())
        assert traffic.kv.transfers_in_flight == 0
        uploads += traffic.uploaded
    assert uploads > 400


def deaf(direction: Direction) -> Callable[[Traffic], None]:
    """Return a sabotage: the stream of the direction waits for no step."""

    def sabotage(traffic: Traffic) -> None:
        traffic.copies._streams[direction].wait_stream = lambda other: None

    return sabotage


def record_early(traffic: Traffic) -> None:
    """Record the event before the copies that it should follow."""
    make = traffic.cuda.Event

    def early() -> Any:
        event = make()
        record = event.record

        def before_all(stream: Any) -> None:
            record(stream)
            if stream is not traffic.cuda.compute:
                stream.work.appendleft(stream.work.pop())

        event.record = before_all
        return event

    traffic.cuda.Event = early


def believe_at_once(traffic: Traffic) -> None:
    """Reuse blocks as soon as their copy is submitted."""
    traffic.copies._streams[OFFLOAD].stalled = True  # otherwise, this sometimes causes no error
    submit = traffic.copies.submit

    def submit_and_finish(transfer: Transfer) -> None:
        submit(transfer)
        traffic.copies._in_flight[transfer.direction].pop()
        traffic.finish([transfer])

    traffic.copies.submit = submit_and_finish  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "sabotage",
    [deaf("offload"), deaf("upload"), record_early, believe_at_once],
    ids=["an offload waits for no step", "an upload waits for no step", "event", "early"],
)
def test_removing_any_wait_causes_a_wrong_read(
    fake_cuda: MakeCuda, sabotage: Callable[[Traffic], None]
) -> None:
    """The test above detects races: it fails if any of these waits is removed."""
    for seed in range(40):
        traffic = Traffic(fake_cuda(seed), seed)
        sabotage(traffic)
        for _ in range(60):
            traffic.iterate()
            if traffic.wrong:
                return
    pytest.fail("no step read a wrong value")


@pytest.fixture
def cuda(fake_cuda: MakeCuda) -> Any:
    return fake_cuda(0)


@pytest.fixture
def engine(cuda: Any) -> CudaCopyEngine:
    return CudaCopyEngine(torch.arange(48).view(12, 4), torch.zeros(12, 4, dtype=torch.int64), cuda)


def transfer(id: int, direction: Direction, source: Sequence[int], target: Sequence[int]) -> Transfer:
    return Transfer(id, str(id), direction, source, target)


def test_runs_are_found_in_any_order() -> None:
    assert list(runs([], [])) == []
    assert list(runs([4], [9])) == [(4, 9, 1)]
    assert list(runs([0, 1, 2, 3], [5, 6, 7, 8])) == [(0, 5, 4)]
    assert list(runs([3, 2, 1, 0], [8, 7, 6, 5])) == [(0, 5, 4)]
    assert list(runs([0, 1, 2, 3], [8, 7, 6, 5])) == [(0, 8, 1), (1, 7, 1), (2, 6, 1), (3, 5, 1)]
    assert list(runs([0, 1, 2, 5, 6], [3, 4, 9, 7, 8])) == [(0, 3, 2), (2, 9, 1), (5, 7, 2)]
    assert list(runs([0, 1, 3], [0, 1, 2])) == [(0, 0, 2), (3, 2, 1)]


def test_runs_cover_a_transfer_and_are_as_long_as_possible() -> None:
    source_of = random.Random(3)
    for _ in range(300):
        n = source_of.randint(0, 12)
        source, target = source_of.sample(range(14), n), source_of.sample(range(14), n)
        pieces = list(runs(source, target))
        pairs = [(old + k, new + k) for old, new, length in pieces for k in range(length)]
        assert pairs == sorted(zip(source, target, strict=True))
        ends = [(old + length, new + length) for old, new, length in pieces]
        assert not set(ends) & {(old, new) for old, new, _ in pieces}  # none could have been longer


def test_an_offload_and_an_upload_preserve_the_blocks(engine: CudaCopyEngine) -> None:
    device, host = engine._pools.device, engine._pools.host
    before = device.clone()
    engine.submit(transfer(1, "offload", [0, 1, 2, 7], [4, 5, 6, 0]))
    assert not host.any()  # nothing has run
    assert [t.id for t in engine.wait()] == [1]
    assert torch.equal(host[[4, 5, 6, 0]], before[[0, 1, 2, 7]])
    engine.submit(transfer(2, "upload", [4, 5, 6, 0], [11, 10, 9, 8]))
    assert [t.id for t in engine.wait()] == [2]
    assert torch.equal(device[[11, 10, 9, 8]], before[[0, 1, 2, 7]])
    assert torch.equal(device[:8], before[:8])


def test_a_run_is_one_copy_and_events_are_used_again(engine: CudaCopyEngine, cuda: Any) -> None:
    launched = []
    copy = torch.Tensor.copy_

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is copy:
                launched.append(len(args[0]))
            return func(*args, **(kwargs or {}))

    for id in range(20):
        with Counting():
            engine.submit(transfer(id, "offload", [5, 6, 7, 2], [0, 1, 2, 9]))
        assert [t.id for t in engine.wait()] == [id]
    assert launched == [1, 3] * 20
    assert cuda.events_made == 1


def test_done_does_not_wait_and_wait_ends_with_the_first_copy_of_either_direction(
    engine: CudaCopyEngine, cuda: Any
) -> None:
    assert engine.done() == engine.wait() == []
    for slow, quick in ((OFFLOAD, UPLOAD), (UPLOAD, OFFLOAD)):
        engine._streams[slow].stalled = True
        engine.submit(transfer(1, slow, [0], [0]))
        engine.submit(transfer(2, slow, [1], [1]))
        assert [engine.done() for _ in range(20)] == [[]] * 20
        engine.submit(transfer(3, quick, [3], [3]))
        assert [t.id for t in engine.wait()] == [3]
        engine._streams[slow].stalled = False
        ids = [t.id for t in engine.wait()]
        while len(ids) < 2:
            ids += [t.id for t in engine.wait()]
        assert ids == [1, 2]


def test_a_copy_waits_for_the_steps_launched_before_it_and_for_no_later_one(
    engine: CudaCopyEngine, cuda: Any
) -> None:
    cuda.compute.stalled = True
    cuda.compute.queue(lambda: engine._pools.device[0].fill_(7))
    engine.submit(transfer(1, "offload", [0], [0]))
    cuda.compute.queue(lambda: time.sleep(0))
    assert [engine.done() for _ in range(20)] == [[]] * 20
    cuda.compute.stalled = False
    cuda.compute.work.popleft()[1]()  # the step
    cuda.compute.work.popleft()[1]()  # its end, which the copy waits for
    cuda.compute.stalled = True  # the next one never ends
    assert [t.id for t in engine.wait()] == [1]
    assert engine._pools.host[0].tolist() == [7] * 4


def test_a_failed_copy_is_raised(engine: CudaCopyEngine, cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"a copy of KV blocks failed: a source block .* outside the pool"):
        engine.submit(transfer(1, "offload", [12], [0]))
    with pytest.raises(RuntimeError, match="2 blocks cannot go onto 1"):
        engine.submit(transfer(1, "offload", [0, 1], [0]))
    event = cuda.Event()
    cuda.Event = lambda: event
    engine.submit(transfer(2, "offload", [0], [0]))

    def broken() -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    event.query = event.synchronize = broken
    for ask in (engine.done, engine.wait, engine.done):
        with pytest.raises(RuntimeError, match="a copy of KV blocks failed: CUDA error: an illegal memory"):
            ask()
    for stream in cuda.streams:
        stream.synchronize = broken
    engine.close()  # the failure was raised before; closing does not raise it again
