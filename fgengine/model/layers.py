"""What both families are built of: linear layers that can be packed for the CPU, and the rotary table."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgengine.model.shape import ModelShape

log = logging.getLogger(__name__)


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
        self.packed: Tensor | None = None

    def pack(self, keep_weight: bool = False) -> None:
        """Reorders the weight once into oneDNN's own layout, which saves doing so at every call.

        The operators are private to torch (its compiler uses them), so anything amiss leaves the layer
        as it is. ``keep_weight``: somebody else reads the plain weight too.
        """
        weight = self.weight.data
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            probe = torch.linspace(-1.0, 1.0, weight.shape[1]).to(weight.dtype).unsqueeze(0)
            right = F.linear(probe, weight, self.bias).float()
            error = (_packed_linear(probe, packed, self.bias).float() - right).abs().max()
        except (AttributeError, RuntimeError) as failure:  # NotImplementedError is a RuntimeError
            log.info("linear layers stay unpacked: %s", str(failure).partition("\n")[0])
            return
        if not error <= 0.02 * right.abs().max() + 1e-6:
            log.warning("linear layers stay unpacked: oneDNN's packed result is off by %g", error)
            return
        self.packed = packed
        if not keep_weight:
            self.weight = parameter(0, device=weight.device, dtype=weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return _packed_linear(x, self.packed, self.bias)
        return F.linear(x, self.weight, self.bias)


def _packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


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
