"""The attention kernels, compiled for an H100 and an A100: they fit and do not spill registers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.triton import gpu
from fgengine.ops.triton.ops import TritonOps

SHARED = {90: 227 * 1024, 80: 163 * 1024}
"""Maximum bytes of shared memory per program, by architecture."""
CONTEXT = 2048
MODELS = {"opt-13b": (40, 40, 128, "float16"), "llama-3-8b": (32, 8, 128, "bfloat16")}
OTHERS = {
    "opt-2.7b": (32, 32, 80, "float16"),
    "smollm2-135m": (9, 3, 64, "bfloat16"),
    "smollm2-135m in float32": (9, 3, 64, "float32"),
}


# Decodes alone: few (contexts are split) and many (not split); and a prompt after a decode.
QUERY_LENS = ([1] * 4, [1] * 512, [1, 2048])
# Requests, decodes and blocks per request are 1, a multiple of 16, or neither: Triton specializes on these.
UNLIKE = ([1], [1] * 3, [1] * 16, [1] * 100, [2], [1, 7, 40], [1] * 16 + [33])


def launch(
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: str,
    block_size: int,
    shared: int,
    batches: list[list[int]],
) -> None:
    """Compute attention for batches; each is the list of its requests' numbers of new tokens."""
    gpu.H100 = gpu.H100._replace(shared_memory=shared)
    kind = getattr(torch, dtype)
    kv = torch.empty(64, 3, 2, kv_heads, block_size, dim, dtype=kind, device="meta")[:, 1]
    for query_lens in batches:
        tokens, requests = sum(query_lens), len(query_lens)
        qkv = torch.empty(tokens, (heads + 2 * kv_heads) * dim, dtype=kind, device="meta")
        batch = RaggedBatch(
            positions=torch.empty(tokens, dtype=torch.int64, device="meta"),
            slots=torch.empty(tokens, dtype=torch.int64, device="meta"),
            block_tables=torch.empty(
                requests, CONTEXT // block_size + requests, dtype=torch.int32, device="meta"
            ),
            query_starts=torch.empty(requests + 1, dtype=torch.int32, device="meta"),
            context_lens=torch.empty(requests, dtype=torch.int32, device="meta"),
            query_lens=tuple(query_lens),
            contexts=(CONTEXT,) * requests,
        )
        TritonOps().attention(qkv[:, : heads * dim].unflatten(1, (heads, dim)), kv, batch)


@pytest.mark.parametrize(
    ("model", "block_size", "architecture"),
    [("opt-13b", 16, 90), ("llama-3-8b", 16, 90), ("llama-3-8b", 32, 90), ("opt-13b", 16, 80)],
)
@pytest.mark.slow
def test_kernels_for_the_papers_models_fit_and_do_not_spill(
    compiled: Callable[..., list], model: str, block_size: int, architecture: int
) -> None:
    limit = SHARED[architecture]
    launches = compiled(launch, *MODELS[model], block_size, limit, QUERY_LENS, architecture=architecture)
    names = [made.kernel for made in launches]
    assert names == ["_decode", "_combine", "_decode", "_decode", "_combine", "_prefill"]
    for made in launches:
        assert made.shared <= limit, made
        assert made.spilt == 0, made
        assert made.registers * made.warps * 32 <= 65536, made
    decode = next(made for made in launches if made.kernel == "_decode")
    # Three programs must fit an SM, to have enough loads in flight; CUDA itself uses 1 KiB per program.
    assert 3 * (decode.shared + 1024) <= limit + 1024 or architecture == 80
    assert 3 * decode.registers * decode.warps * 32 <= 65536


@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.slow
def test_kernels_for_other_models_fit_and_do_not_spill(compiled: Callable[..., list], model: str) -> None:
    for made in compiled(launch, *OTHERS[model], 16, SHARED[90], QUERY_LENS):
        assert made.shared <= SHARED[90], made
        assert made.spilt == 0, made


@pytest.mark.slow
def test_no_batch_size_needs_its_own_compilation(compiled: Callable[..., list]) -> None:
    """Otherwise serving would pause for a second at each new batch size."""
    launches = compiled(launch, *MODELS["llama-3-8b"], 16, SHARED[90], UNLIKE)
    assert len(launches) > 10
    keys = {
        name: {made.key for made in launches if made.kernel == name}
        for name in ("_decode", "_combine", "_prefill")
    }
    assert {name: len(found) for name, found in keys.items()} == {"_decode": 2, "_combine": 1, "_prefill": 1}
