"""The kernels other than attention, compiled for an H100: no register spills at the models' sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fgengine.model.layers import Linear
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.triton.ops import TritonOps

# hidden, heads, KV heads, head size, MLP, vocabulary
MODELS = {
    "opt-13b": (5120, 40, 40, 128, 20480, 50272, "float16"),
    "llama-3-8b": (4096, 32, 8, 128, 14336, 128256, "bfloat16"),
    "smollm2-135m": (576, 9, 3, 64, 1536, 49152, "float32"),
}


def launch(hidden: int, heads: int, kv_heads: int, dim: int, inner: int, vocab: int, dtype: str) -> None:
    """Run every operation once, on 16 rows."""
    ops, meta, plain = TritonOps(), torch.device("meta"), getattr(torch, dtype)

    def made(*sizes: int, kind: torch.dtype = plain) -> torch.Tensor:
        return torch.empty(*sizes, dtype=kind, device=meta)

    x, weight = made(16, hidden), made(hidden)
    ops.rms_norm(x, weight, 1e-5)
    ops.add_rms_norm(x, x, weight, 1e-5)
    ops.layer_norm(x, weight, weight, 1e-5)
    ops.add_layer_norm(x, x, weight, weight, 1e-5)
    ops.silu_mul(made(16, 2 * inner))
    ops.linear_relu(Linear(hidden, inner, True, meta, plain), x)
    indices = {name: made(16, kind=torch.int64) for name in ("positions", "slots", "block_tables")}
    starts = {name: made(17, kind=torch.int32) for name in ("query_starts", "context_lens")}
    batch = RaggedBatch(**indices, **starts, query_lens=(1,) * 16, contexts=(1,) * 16)
    qkv, pool = made(16, (heads + 2 * kv_heads) * dim), made(100, 32, 2, kv_heads, 16, dim)
    ops.write_kv(qkv, pool[:, 1], batch, made(8192, dim, kind=torch.float32))
    ops.write_kv(qkv, pool[:, 1], batch)
    ops.sample(made(16, vocab), made(16, 4, kind=torch.float64))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.slow
def test_nothing_spills(compiled: Callable[..., list], model: str) -> None:
    launches = compiled(launch, *MODELS[model])
    names = [made.kernel for made in launches]
    assert names == ["_norm"] * 4 + ["_silu_mul", "_bias_relu", "_rope_kv", "_rope_kv", "_sample"]
    for made in launches:
        assert made.spilt == 0, made
        assert made.registers * made.warps * 32 <= 65536, made
        assert made.shared <= 1024, made  # warps only exchange partial sums, no tiles
