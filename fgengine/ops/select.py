"""Picks the implementation of the operations for a device."""

from __future__ import annotations

import torch

from fgengine.ops.cpu.build import kernels
from fgengine.ops.cpu.ops import CpuOps
from fgengine.ops.reference import TorchOps


def ops_for(device: torch.device, dtype: torch.dtype) -> TorchOps:
    """Return the fastest operations that work on this device and dtype."""
    if device.type == "cuda":
        from fgengine.ops.triton.ops import TritonOps  # imported here: Triton may be missing without a GPU

        return TritonOps()
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        library = kernels(dtype is torch.bfloat16)
        if library is not None:
            return CpuOps(library)
    return TorchOps()
