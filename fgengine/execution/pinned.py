"""Pinned host memory of exactly the requested size, which a GPU can copy from and to without the CPU.

torch's own pinned allocator rounds up to a power of two: a pool of 20 GiB would take 32 GiB.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from fgengine.execution.host_memory import host_memory
from fgengine.units import size


class _PinnedPages(mmap.mmap):
    """Anonymous pages that are pinned as long as they exist. A tensor over them keeps them alive."""

    unpin: Callable[[], Any] | None = None

    def __del__(self) -> None:
        if self.unpin is not None:  # the pages are returned to the system after this method
            self.unpin()


def pinned_empty(sizes: tuple[int, ...], dtype: torch.dtype, cudart: Any = None) -> Tensor:
    """Return an uninitialized CPU tensor in pinned memory. All its pages count as used at once.

    Args:
        cudart: ``torch.cuda.cudart()``, or its replacement in a test.

    Raises:
        ValueError: there is not enough memory, or it cannot be pinned.
    """
    num_bytes = math.prod(sizes) * dtype.itemsize
    if num_bytes == 0:
        return torch.empty(sizes, dtype=dtype)
    available = host_memory().free
    if num_bytes > available:
        raise ValueError(
            f"{size(num_bytes)} must be pinned, but only {size(available)} of memory are available: lower "
            "--swap-space"
        )
    try:
        pages = _PinnedPages(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise ValueError(f"the system cannot allocate {size(num_bytes)} of memory: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # some kernels have no huge pages, for example in small virtual machines
            pages.madvise(mmap.MADV_HUGEPAGE)  # pinning works page by page: fewer pages are faster
    flat = torch.frombuffer(pages, dtype=torch.uint8)
    cudart = cudart or torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = flat.data_ptr()
    status = cudart.cudaHostRegister(address, num_bytes, 0)
    if int(status) != 0:
        reason = cudart.cudaGetErrorString(status)
        raise ValueError(f"{size(num_bytes)} of memory cannot be pinned: {reason} (CUDA error {int(status)})")
    pages.unpin = lambda: cudart.cudaHostUnregister(address)
    return flat.view(dtype).view(sizes)
