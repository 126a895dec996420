"""Parts of both model families: linear layers that can be packed for the CPU, and the RoPE table."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgengine.model.shape import ModelShape
from fgengine.ops.cpu.linear import PackedLinear, pack_linear


def parameter(*sizes: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    """Create an uninitialized parameter, which the loader fills."""
    return nn.Parameter(torch.empty(*sizes, device=device, dtype=dtype), requires_grad=False)


class Linear(nn.Module):
    """A linear layer: x [T, inputs] -> [T, outputs]. ``weight`` is [outputs, inputs], ``bias`` [outputs]."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.weight = parameter(outputs, inputs, device=device, dtype=dtype)
        self.bias = parameter(outputs, device=device, dtype=dtype) if bias else None
        self.packed: PackedLinear | None = None

    def pack(self, keep_weight: bool = False) -> None:
        """Reorder the weight for the CPU kernel, if there is one, and free the plain weight.

        ``keep_weight``: do not free it, because the embedding uses it too.
        """
        self.packed = pack_linear(self.weight.data, self.bias)
        if self.packed is not None and not keep_weight:
            self.weight = parameter(0, device=self.weight.device, dtype=self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Compute x [T, inputs] -> [T, outputs]."""
        if self.packed is not None:
            return self.packed(x, self.bias)
        return F.linear(x, self.weight, self.bias)


def rope_table(shape: ModelShape, device: torch.device) -> Tensor:
    """Return [max_position, head_dim] float32: for each position the cosines of all angles, then the sines.

    The frequency of pair i is theta ** (-2i / head_dim). Scaling lowers the frequencies as the checkpoint was
    trained: "linear" divides all of them by the factor. "llama3" (``apply_scaling`` of Meta's llama-models)
    divides only those with a wavelength that is long compared with the original context, with a smooth
    transition.
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
            share = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
            frequencies = share * frequencies + (1.0 - share) * slowed
    angles = torch.outer(torch.arange(shape.max_position, dtype=torch.float32), frequencies)
    table = torch.empty(shape.max_position, shape.head_dim)  # filled in place: it can take gigabytes
    cosines, sines = table.chunk(2, dim=-1)
    torch.cos(angles, out=cosines)
    torch.sin(angles, out=sines)
    return table.to(device)
