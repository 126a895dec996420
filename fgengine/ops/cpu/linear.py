"""Linear layers whose weight is reordered once for the CPU.

Our kernel takes every size of batch, so one copy of the weights serves both prefill and decode. Beside
oneDNN's packed layout, on two cores of a Zen 4, a decode step in float32 took 0.6 to 0.7 of the time and a
prefill 0.95 to 1.07; in bfloat16 it was ahead up to about a hundred rows and level beyond.
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
"""Elements: a cache line or two."""
WAYS_APART = 2048  # rows this many elements apart fall into one set of the first-level cache


class PackedLinear:
    """The kernel of linear.h on a weight [outputs, inputs].

    A row's result does not depend, in any bit, on the other rows.
    """

    def __init__(self, library: ctypes.CDLL, weight: Tensor) -> None:
        self._library = library
        self.outputs, self.inputs = weight.shape
        panel, group = 2 * library.lanes(), library.group()
        missing = (0, -self.inputs % group, 0, -self.outputs % panel)
        # F.pad copies even where nothing is missing.
        padded = F.pad(weight, missing) if any(missing) else weight
        if group == 2:
            padded = padded.view(torch.int32)  # two bfloat16 move as one
        self._weight = padded.view(-1, panel, padded.shape[1]).transpose(1, 2).contiguous()
        self._padded_inputs = self.inputs + missing[1]

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = self.aligned(x)
        out = x.new_empty(x.shape[0], self.outputs)
        run(self._library, (Instruction * 1)(self.instruction(out, x, bias)), step_of(x.shape[0]))
        return out

    def aligned(self, x: Tensor) -> Tensor:
        """``x``, or a copy that the kernel can read, and read fast."""
        if x.stride(1) != 1:
            x = x.contiguous()
        if self._padded_inputs != self.inputs:
            return F.pad(x, (0, self._padded_inputs - self.inputs))
        return F.pad(x, (0, LINE)) if x.shape[0] > 4 and x.stride(0) % WAYS_APART == 0 else x

    def instruction(self, out: Tensor, x: Tensor, bias: Tensor | None, relu: bool = False) -> Instruction:
        """``out`` [T, outputs] from an aligned ``x``."""
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
    """A weight [outputs, inputs] for our kernel, tried once; None where there is no kernel for it.

    The result holds a reordered copy; the caller may let go of ``weight``.
    """
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    library = kernels(weight.dtype is torch.bfloat16)
    if library is None:
        return None
    packed = PackedLinear(library, weight)
    probe = torch.linspace(-1.0, 1.0, weight.shape[1]).to(weight.dtype).unsqueeze(0)
    right = F.linear(probe, weight, bias).float()
    error = (packed(probe, bias).float() - right).abs().max()
    if not error <= 0.02 * right.abs().max() + 1e-6:
        log.warning("linear layers stay unpacked: the packed result is off by %g", error)
        return None
    return packed
