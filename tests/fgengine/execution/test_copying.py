"""Copies of KV blocks by the worker thread: exact content, reported failures, no needless waiting."""

import ctypes
import random

import pytest
import torch

from fgengine.execution.copying import ThreadCopyEngine
from fgengine.kv.transfer import Transfer


@pytest.fixture
def pools() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(20, 2, 2, 3, 16, 8).bfloat16(), torch.zeros(30, 2, 2, 3, 16, 8).bfloat16()


def drain(engine: ThreadCopyEngine) -> list[int]:
    ids = []
    while finished := engine.wait():
        ids += [transfer.id for transfer in finished]
    return sorted(ids)


def test_round_trip_bit_for_bit(pools: tuple[torch.Tensor, torch.Tensor]) -> None:
    device, host = pools
    before = device.clone()
    engine = ThreadCopyEngine(device, host)
    out = random.Random(0).sample(range(30), 20)
    engine.submit(Transfer(1, "a", "offload", range(12), out[:12]))
    engine.submit(Transfer(2, "b", "offload", range(12, 20), out[12:]))
    assert drain(engine) == [1, 2]
    device.fill_(float("nan"))
    back = random.Random(1).sample(range(20), 20)
    engine.submit(Transfer(3, "a", "upload", out, back))
    assert drain(engine) == [3]
    engine.close()
    assert torch.equal(device[back].view(torch.int16), before.view(torch.int16))


def test_a_block_is_moved_in_one_piece(
    pools: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    memmove = ctypes.memmove

    def recorded(target: int, source: int, size: int) -> None:
        sizes.append(size)
        memmove(target, source, size)

    monkeypatch.setattr(ctypes, "memmove", recorded)
    engine = ThreadCopyEngine(*pools)
    engine.submit(Transfer(1, "a", "offload", [3, 1, 4], [0, 1, 2]))
    assert drain(engine) == [1]
    engine.close()
    assert sizes == [2 * 2 * 3 * 16 * 8 * 2] * 3  # layers, keys and values, heads, tokens, head size, bytes


def test_without_copies_in_flight_nothing_waits(pools: tuple[torch.Tensor, torch.Tensor]) -> None:
    engine = ThreadCopyEngine(*pools)
    assert engine.done() == engine.wait() == []
    engine.close()


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [([20], [0], "outside"), ([0], [-1], "outside"), ([0, 1], [2], "2 blocks cannot go onto 1")],
)
def test_a_failed_copy_is_raised(
    pools: tuple[torch.Tensor, torch.Tensor], source: list[int], target: list[int], words: str
) -> None:
    engine = ThreadCopyEngine(*pools)
    engine.submit(Transfer(1, "a", "offload", source, target))
    with pytest.raises(RuntimeError, match=words):
        engine.wait()
    with pytest.raises(RuntimeError, match=words):
        engine.done()
    engine.close()


def test_pools_of_different_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="same kind"):
        ThreadCopyEngine(torch.zeros(2, 4), torch.zeros(2, 5))
