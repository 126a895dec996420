"""Pinned memory: exactly the requested size, as long as a tensor uses it, or an error with the reason."""

from __future__ import annotations

import gc
import mmap

import pytest
import torch

from fgengine.execution.host_memory import HostMemory
from fgengine.execution.pinned import pinned_empty


class FakeCudart:
    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if self.status == 0:
            self.pinned[address] = size
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        del self.pinned[address]
        return 0

    def cudaGetErrorString(self, status: int) -> str:
        return {2: "out of memory"}[status]


def test_exactly_the_requested_size_is_pinned() -> None:
    cudart = FakeCudart()
    pool = pinned_empty((3, 5, 7, 1000), torch.bfloat16, cudart)
    assert cudart.pinned == {pool.data_ptr(): 3 * 5 * 7 * 1000 * 2}
    assert pool.data_ptr() % mmap.PAGESIZE == 0
    assert (pool.shape, pool.dtype, pool.is_contiguous()) == ((3, 5, 7, 1000), torch.bfloat16, True)
    pool.fill_(2.0)
    assert pool.sum() == 2 * 3 * 5 * 7 * 1000


@pytest.mark.slow
def test_memory_is_pinned_while_a_view_of_it_exists() -> None:
    cudart = FakeCudart()
    part = pinned_empty((4, 1000), torch.float16, cudart)[2]
    gc.collect()
    assert len(cudart.pinned) == 1
    part.fill_(1.0)
    del part
    gc.collect()
    assert cudart.pinned == {}


def test_a_system_without_huge_pages_pins_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pages: object, option: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("fgengine.execution.pinned._PinnedPages.madvise", refused, raising=False)
    cudart = FakeCudart()
    pool = pinned_empty((100,), torch.float16, cudart)
    assert cudart.pinned == {pool.data_ptr(): 200}


def test_nothing_is_pinned_for_an_empty_pool() -> None:
    cudart = FakeCudart()
    assert pinned_empty((0, 4), torch.float16, cudart).shape == (0, 4)
    assert cudart.pinned == {}


def test_memory_that_cannot_be_pinned_raises_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"200 B of memory cannot be pinned: out of memory \(CUDA error 2"):
        pinned_empty((100,), torch.float16, FakeCudart(status=2))
    with pytest.raises(ValueError, match=r"2,048 TiB must be pinned, but only .* GiB of memory are avail"):
        pinned_empty((2**50,), torch.float16, FakeCudart())
    monkeypatch.setattr("fgengine.execution.pinned.host_memory", lambda: HostMemory(2**60, 2**60))
    with pytest.raises(ValueError, match=r"the system cannot allocate 2,048 TiB of memory: .*allocate"):
        pinned_empty((2**50,), torch.float16, FakeCudart())
