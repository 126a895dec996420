"""Which operations a device computes with."""

from __future__ import annotations

import torch

from fgengine.ops.reference import TorchOps


def ops_for(device: torch.device, dtype: torch.dtype) -> TorchOps:
    """The fastest that work here."""
    return TorchOps()
