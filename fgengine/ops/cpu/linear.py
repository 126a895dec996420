"""Linear layers whose weight is reordered once for the CPU.

Our kernel supports every batch size, so one copy of the weights serves both prefill and decode. Compared with
oneDNN's packed layout on two cores of a Zen 4, it took 0.6 to 0.7 times as long for a float32 decode step and
0.95 to 1.07 times as long for a prefill. In bfloat16, it was faster up to about 100 rows and equally fast
above.
"""

from __future__ import annotations

import ctypes
import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from fgengine.ops.cpu.build import kernels
from fgengine.ops.cpu.instructions import Instruction, Kind, address, rows_of, run, step_of

log = logging.getLogger(__name__)

LINE = 32
"""Elements added to a row's stride: one cache line in bfloat16, two in float32."""
WAYS_APART = 2048
"""Elements. Rows whose distance is a multiple of this fall into one set of the first-level cache."""


class PackedLinear:
    """A linear layer computed by the kernel of linear.h, from a weight [outputs, inputs].

    x [T, inputs] -> [T, outputs]. The result of a row is bit for bit the same in any batch.
    """

    def __init__(self, library: ctypes.CDLL, weight: Tensor) -> None:
        self._library = library
        self.outputs, self.inputs = weight.shape
        panel, group = 2 * library.lanes(), library.group()
        padding = (0, -self.inputs % group, 0, -self.outputs % panel)
        # F.pad copies even without any padding.
        padded = F.pad(weight, padding) if any(padding) else weight
        if group == 2:
            padded = padded.view(torch.int32)  # a pair of bfloat16 is moved as one element
        self._weight = padded.view(-1, panel, padded.shape[1]).transpose(1, 2).contiguous()
        self._padded_inputs = self.inputs + padding[1]

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = self.aligned(x)
        out = x.new_empty(x.shape[0], self.outputs)
        run(self._library, (Instruction * 1)(self.instruction(out, x, bias)), step_of(x.shape[0]))
        return out

    def aligned(self, x: Tensor) -> Tensor:
        """Return ``x`` [T, inputs], or a copy with a layout that the kernel can read, and read fast."""
        if x.stride(1) != 1:
            x = x.contiguous()
        if self._padded_inputs != self.inputs:
            return F.pad(x, (0, self._padded_inputs - self.inputs))
        return F.pad(x, (0, LINE)) if x.shape[0] > 4 and x.stride(0) % WAYS_APART == 0 else x

    def instruction(self, out: Tensor, x: Tensor, bias: Tensor | None, relu: bool = False) -> Instruction:
        """Return the instruction that computes ``out`` [T, outputs] from an ``x`` returned by ``aligned``."""
        return Instruction(
            kind=Kind.LINEAR,
            **rows_of(out=out, x=x),
            weight=self._weight.data_ptr(),
            bias=address(bias),
            size=self._padded_inputs,
            outputs=self.outputs,
            flag=relu,
        )


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear | None:
    """Reorder a weight [outputs, inputs] for our kernel and compare one result with torch's.

    Returns None if there is no kernel for the dtype or machine, or if the result is wrong. The returned layer
    holds a reordered copy, so the caller may free ``weight``.
    """
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    library = kernels(weight.dtype is torch.bfloat16)
    if library is None:
        return None
    packed = PackedLinear(library, weight)
    probe = torch.linspace(-1.0, 1.0, weight.shape[1]).to(weight.dtype).unsqueeze(0)
    expected = F.linear(probe, weight, bias).float()
    error = (packed(probe, bias).float() - expected).abs().max()
    if not error <= 0.02 * expected.abs().max() + 1e-6:
        log.warning("a linear layer is not packed, because the packed result is off by %g", error)
        return None
    return packed
