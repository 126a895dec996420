"""What kernels are cut to fit."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch


class GPU(NamedTuple):
    sms: int
    shared_memory: int
    """Bytes that one program may have."""


H100 = GPU(132, 227 * 1024)


@cache
def gpu_of(device: torch.device) -> GPU:
    """An H100 where there is no GPU to ask: under the interpreter, or compiling for one elsewhere."""
    if device.type != "cuda":
        return H100
    found = torch.cuda.get_device_properties(device)
    return GPU(found.multi_processor_count, found.shared_memory_per_block_optin)  # type: ignore[attr-defined]
