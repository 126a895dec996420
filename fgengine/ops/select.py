"""Which operations a device computes with."""

from __future__ import annotations

import torch

from fgengine.ops.cpu.build import kernels
from fgengine.ops.cpu.ops import CpuOps
from fgengine.ops.reference import TorchOps


def ops_for(device: torch.device, dtype: torch.dtype) -> TorchOps:
    """The fastest that work here."""
    if device.type == "cuda":
        from fgengine.ops.triton.ops import TritonOps  # imported where there is a GPU to compile for

        return TritonOps()
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        library = kernels(dtype is torch.bfloat16)
        if library is not None:
            return CpuOps(library)
    return TorchOps()
