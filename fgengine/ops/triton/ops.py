"""The operations on a GPU: Triton kernels where they apply, plain torch elsewhere."""

from __future__ import annotations

from torch import Tensor

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps
from fgengine.ops.triton.attention import attention, fits


class TritonOps(TorchOps):
    """Tensors on one CUDA device (or, under Triton's interpreter, on the CPU).

    Nothing here asks the GPU for anything, so that a decode step can be captured as a CUDA graph.
    """

    name = "triton kernels"

    def attention(self, q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
        if not fits(q, kv):
            return super().attention(q, kv, batch)
        return attention(q, kv, batch)
