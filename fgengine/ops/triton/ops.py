"""The operations on a GPU: Triton kernels where they apply, plain torch elsewhere."""

from __future__ import annotations

from fgengine.ops.reference import TorchOps


class TritonOps(TorchOps):
    """Tensors on one CUDA device (or, under Triton's interpreter, on the CPU).

    Nothing here asks the GPU for anything, so that a decode step can be captured as a CUDA graph.
    """

    name = "triton kernels"
