"""What both families are built of: linear layers that can be packed for the CPU, and the rotary table."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgengine.model.shape import ModelShape
from fgengine.ops.cpu.linear import PackedLinear, pack_linear


def parameter(*sizes: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    """Uninitialised: the loader fills it."""
    return nn.Parameter(torch.empty(*sizes, device=device, dtype=dtype), requires_grad=False)


class Linear(nn.Module):
    """x [T, inputs] -> [T, outputs]."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.weight = parameter(outputs, inputs, device=device, dtype=dtype)
        self.bias = parameter(outputs, device=device, dtype=dtype) if bias else None
        self.packed: PackedLinear | None = None

    def pack(self, keep_weight: bool = False) -> None:
        """Reorders the weight once for the CPU, where that is faster; the plain weight goes.

        ``keep_weight``: somebody else reads the plain weight too, so both are held.
        """
        self.packed = pack_linear(self.weight.data, self.bias)
        if self.packed is not None and not keep_weight:
            self.weight = parameter(0, device=self.weight.device, dtype=self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed(x, self.bias)
        return F.linear(x, self.weight, self.bias)


def rope_table(shape: ModelShape, device: torch.device) -> Tensor:
    """[max_position, head_dim] float32: the cosines of each pair's angle, then the sines.

    Frequencies are theta ** (-2i / head_dim), slowed down as the checkpoint was trained with: "linear"
    divides all by the factor; "llama3" (Meta's llama-models, ``apply_scaling``) only those whose
    wavelength is long against the original context, with a smooth passage between.
    """
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    frequencies = 1.0 / shape.rope_theta**exponents
    if (scaling := shape.rope_scaling) is not None:
        slowed = frequencies / scaling.factor
        if scaling.kind == "linear":
            frequencies = slowed
        else:
            turns = scaling.original_max_position * frequencies / (2 * math.pi)
            span = scaling.high_freq_factor - scaling.low_freq_factor
            kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
            frequencies = kept * frequencies + (1.0 - kept) * slowed
    angles = torch.outer(torch.arange(shape.max_position, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)
