"""The properties of a GPU that decide the tile sizes of kernels."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch


class GPU(NamedTuple):
    """Number of SMs and shared memory of a GPU."""

    sms: int
    shared_memory: int
    """Maximum bytes of shared memory of one program."""


H100 = GPU(132, 227 * 1024)


@cache
def gpu_of(device: torch.device) -> GPU:
    """Return the GPU's properties; an H100's without a GPU (in Triton's interpreter, or to compile only)."""
    if device.type != "cuda":
        return H100
    found = torch.cuda.get_device_properties(device)
    return GPU(found.multi_processor_count, found.shared_memory_per_block_optin)  # type: ignore[attr-defined]
