"""Linear layers whose weight is reordered once for the CPU.

Where our kernel runs (bfloat16 on a processor with AVX512-BF16) it takes every size of batch: beside oneDNN
it was ahead up to about a hundred rows and level beyond, so one copy of the weights serves both prefill and
decode. Elsewhere oneDNN's own packed layout is used, and plain torch where that is not to be had either.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fgengine.ops.cpu.build import kernels

log = logging.getLogger(__name__)

PackedLinear = Callable[[Tensor, Tensor | None], Tensor]
"""(x [T, inputs], bias [outputs] or None) -> [T, outputs]."""

PANEL = 32  # as in linear.h
WAYS_APART = 2048  # rows this many elements apart fall into one set of the first-level cache


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear | None:
    """The fastest that works here on a weight [outputs, inputs], tried once; None: nothing beats F.linear.

    The result holds a reordered copy; the caller may let go of ``weight``.
    """
    try:
        packed = _own(weight) or _onednn(weight)
        probe = torch.linspace(-1.0, 1.0, weight.shape[1]).to(weight.dtype).unsqueeze(0)
        right = F.linear(probe, weight, bias).float()
        error = (packed(probe, bias).float() - right).abs().max()
    except (AttributeError, RuntimeError) as failure:  # NotImplementedError is a RuntimeError
        log.info("linear layers stay unpacked: %s", str(failure).partition("\n")[0])
        return None
    if not error <= 0.02 * right.abs().max() + 1e-6:
        log.warning("linear layers stay unpacked: the packed result is off by %g", error)
        return None
    return packed


class OwnLinear:
    """The kernel of linear.h on a weight [outputs, inputs] in bfloat16.

    A row's result does not depend, in any bit, on the other rows.
    """

    def __init__(self, library: ctypes.CDLL, weight: Tensor) -> None:
        self._linear = library.linear
        self.outputs, self.inputs = weight.shape
        missing = (0, self.inputs % 2, 0, -self.outputs % PANEL)
        padded = (
            F.pad(weight, missing) if any(missing) else weight
        )  # F.pad copies even where nothing is missing
        pairs = padded.view(torch.int32)  # two bfloat16 move as one
        self._weight = pairs.view(-1, PANEL, pairs.shape[1]).transpose(1, 2).contiguous()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.shape[0]
        if x.stride(1) != 1:
            x = x.contiguous()
        if self.inputs % 2:
            x = F.pad(x, (0, 1))
        elif rows > 4 and x.stride(0) % WAYS_APART == 0:
            x = F.pad(x, (0, PANEL))
        out = x.new_empty(rows, self.outputs)
        self._linear(
            out.data_ptr(),
            x.data_ptr(),
            self._weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            rows,
            self.outputs,
            self._weight.shape[1],
            x.stride(0),
        )
        return out


def _own(weight: Tensor) -> OwnLinear | None:
    if weight.dtype is not torch.bfloat16:
        return None
    library = kernels(True)
    return OwnLinear(library, weight) if library is not None and hasattr(library, "linear") else None


def _onednn(weight: Tensor) -> PackedLinear:
    """The operators are private to torch (its compiler uses them); without them an AttributeError."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    multiply = torch.ops.mkldnn._linear_pointwise

    def linear(x: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = multiply(x, packed, bias, "none", [], "")
        return out

    return linear
