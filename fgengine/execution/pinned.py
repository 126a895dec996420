"""Host memory that a GPU copies from and to by itself: pinned, and not a byte more than asked for.

torch's own pinned allocator rounds up to powers of two: a pool of 20 GiB would take 32.
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
    """Anonymous pages, pinned as long as they exist. A tensor made of them keeps them alive."""

    unpin: Callable[[], Any] | None = None

    def __del__(self) -> None:
        if self.unpin is not None:  # before the pages go back to the system, which happens after this
            self.unpin()


def pinned_empty(sizes: tuple[int, ...], dtype: torch.dtype, cudart: Any = None) -> Tensor:
    """An uninitialised CPU tensor in pinned memory, for good: pages count as used from the start.

    Args:
        cudart: ``torch.cuda.cudart()``, or what a test puts in its place.

    Raises:
        ValueError: there is not so much memory, or it cannot be pinned.
    """
    num_bytes = math.prod(sizes) * dtype.itemsize
    if num_bytes == 0:
        return torch.empty(sizes, dtype=dtype)
    available = host_memory().free
    if num_bytes > available:
        raise ValueError(
            f"{size(num_bytes)} were to be pinned, but {size(available)} of memory are available"
        )
    try:
        pages = _PinnedPages(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise ValueError(f"the system does not give {size(num_bytes)} of memory: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them, as small virtual machines have
            pages.madvise(mmap.MADV_HUGEPAGE)  # pinning goes page by page
    flat = torch.frombuffer(pages, dtype=torch.uint8)
    cudart = cudart or torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = flat.data_ptr()
    status = cudart.cudaHostRegister(address, num_bytes, 0)
    if int(status) != 0:
        reason = cudart.cudaGetErrorString(status)
        raise ValueError(f"{size(num_bytes)} of memory cannot be pinned: {reason} (CUDA error {int(status)})")
    pages.unpin = lambda: cudart.cudaHostUnregister(address)
    return flat.view(dtype).view(sizes)
