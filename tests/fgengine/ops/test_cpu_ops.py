"""The C kernels, compared with plain torch at many head and block sizes; unused memory holds NaN."""

import random
from pathlib import Path

import pytest
import torch

from fgengine.cache import is_whole
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.cpu import build
from fgengine.ops.cpu.ops import CpuOps
from fgengine.ops.cpu.processor import cpu_flags
from fgengine.ops.reference import TorchOps
from fgengine.ops.select import ops_for

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    made: torch.dtype = request.param
    return made


@pytest.fixture
def fast(dtype: torch.dtype) -> CpuOps:
    ops = ops_for(CPU, dtype)
    assert isinstance(ops, CpuOps), "these tests need a C compiler"
    return ops


@pytest.fixture(scope="module")
def plain_flags() -> CpuOps:
    """Operations with bfloat16 kernels compiled without AVX512-BF16."""
    without = ("-mno-avx512bf16",) if "avx512_bf16" in cpu_flags() else ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, *without))
        library = build.kernels.__wrapped__(True)
    assert library is not None
    assert library.group() == 1
    return CpuOps(library)


def scattered_batch(items: list[tuple[int, int]], block_size: int, num_blocks: int) -> RaggedBatch:
    """Build a batch from (start, new tokens) of each request, on random block tables."""
    free = random.Random(0).sample(range(num_blocks), num_blocks)
    tables = [[free.pop() for _ in range(-(-(start + new) // block_size))] for start, new in items]
    laid = [(start, new, table) for (start, new), table in zip(items, tables, strict=True)]
    return RaggedBatch.build(laid, block_size, CPU)


def used_pool(batch: RaggedBatch, kv: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return a pool with random keys and values within every context, NaN elsewhere."""
    filled = torch.full_like(kv, float("nan"))
    for row, context in enumerate(batch.contexts):
        at = torch.arange(context)
        block = batch.block_tables[row][at // block_size].long()
        filled[block, :, :, at % block_size] = torch.randn(context, *kv.shape[1:3], kv.shape[4]).to(kv.dtype)
    return filled


@pytest.mark.parametrize("block_size", [8, 16, 128])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (8, 1, 128), (2, 2, 16), (6, 2, 20)]
)
@pytest.mark.slow
def test_attention(
    fast: CpuOps, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, block_size: int
) -> None:
    items = [(0, 1), (16, 1), (0, 37), (130, 1), (15, 2), (5, 60), (127, 1)]
    batch = scattered_batch(items, block_size, 80)
    pool = torch.empty(80, 3, 2, kv_heads, block_size, dim, dtype=dtype)
    pool[:, 1] = used_pool(batch, pool[:, 1], block_size)
    q = torch.randn(103, heads + 2 * kv_heads, dim).to(dtype)[:, :heads]  # strided, as in a fused qkv
    got = fast.attention(q, pool[:, 1], batch)
    assert got.isfinite().all()
    want = TorchOps().attention(q, pool[:, 1], batch)
    torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_attention_without_avx512_bf16(plain_flags: CpuOps) -> None:
    torch.manual_seed(0)
    batch = scattered_batch([(0, 1), (0, 37), (130, 1), (5, 60)], 16, 80)
    for heads, kv_heads, dim in [(9, 3, 64), (4, 4, 80), (8, 1, 128)]:
        kv = used_pool(batch, torch.empty(80, 2, kv_heads, 16, dim, dtype=torch.bfloat16), 16)
        q = torch.randn(99, heads, dim).bfloat16()
        got, want = plain_flags.attention(q, kv, batch), TorchOps().attention(q, kv, batch)
        torch.testing.assert_close(got, want, atol=4e-2, rtol=4e-2)


def test_a_token_attends_alike_alone_and_in_a_prefill(fast: CpuOps, dtype: torch.dtype) -> None:
    """Bit for bit, because recomputing a request after a preemption must not change its output."""
    prefill = scattered_batch([(0, 75)], 16, 10)
    kv = used_pool(prefill, torch.empty(10, 2, 3, 16, 64, dtype=dtype), 16)
    q = torch.randn(75, 9, 64).to(dtype)
    together = fast.attention(q, kv, prefill)
    for t in range(75):
        alone = RaggedBatch.build([(t, 1, prefill.block_tables[0].tolist())], 16, CPU)
        assert torch.equal(fast.attention(q[t : t + 1], kv, alone)[0], together[t])


def test_attention_with_very_different_scores(fast: CpuOps, dtype: torch.dtype) -> None:
    batch = scattered_batch([(200, 1), (0, 50)], 16, 30)
    kv = used_pool(batch, torch.empty(30, 2, 1, 16, 64, dtype=dtype), 16)
    q = torch.randn(51, 2, 64).to(dtype) * 60
    got, want = fast.attention(q, kv, batch), TorchOps().attention(q, kv, batch)
    torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dim", [64, 32, 16])
@pytest.mark.parametrize("rotated", [True, False])
def test_write_kv(fast: CpuOps, dtype: torch.dtype, rotated: bool, dim: int) -> None:
    batch = scattered_batch([(0, 20), (33, 1), (7, 300)], 16, 40)
    qkv = torch.randn(321, 7 * dim).to(dtype)
    rope = torch.randn(400, dim) if rotated else None
    results = []
    for ops in (TorchOps(), fast):
        mine, kv = qkv.clone(), torch.zeros(40, 2, 2, 16, dim, dtype=dtype)
        ops.write_kv(mine, kv, batch, rope)
        results.append((mine, kv))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert results[0][1].count_nonzero() == 321 * 4 * dim


@pytest.mark.parametrize("shape", [(1, 576), (16, 64), (200, 500), (3, 33)])
def test_norms_and_silu(fast: CpuOps, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.randn(shape[1]).to(dtype)
    plain, near = TorchOps(), {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(fast.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5), **near)
    ours, theirs = residual.clone(), residual.clone()
    torch.testing.assert_close(
        fast.add_rms_norm(x, ours, weight, 1e-5), plain.add_rms_norm(x, theirs, weight, 1e-5), **near
    )
    torch.testing.assert_close(ours, theirs, **near)
    gate_up = torch.cat((x * 30, residual), dim=1)
    torch.testing.assert_close(fast.silu_mul(gate_up), plain.silu_mul(gate_up), **near)


def test_without_a_compiler_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.kernels.__wrapped__(False) is None
    assert "no C compiler" in caplog.text


def test_a_failing_compiler_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-no-such-flag",))
    assert build.kernels.__wrapped__(False) is None
    assert "could not be compiled" in caplog.text
    assert list(tmp_path.rglob("*.so")) == []


@pytest.mark.parametrize("damage", ["truncated", "emptied", "hash missing"])
@pytest.mark.slow
def test_damaged_kernels_are_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    """To load half of a library would crash the process at every start."""
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    assert build.kernels.__wrapped__(False) is not None
    (path,) = tmp_path.rglob("*.so")
    content, inode = path.read_bytes(), path.stat().st_ino
    if damage == "hash missing":
        path.with_name(f"{path.name}.sha256").unlink()
    else:
        # Write a new file, because this process has mapped the old one.
        path.unlink()
        path.write_bytes(content[: 0 if damage == "emptied" else len(content) // 2])
    assert build.kernels.__wrapped__(False) is not None
    assert path.read_bytes() == content
    assert damage != "hash missing" or path.stat().st_ino != inode
    assert is_whole(path)


@pytest.mark.slow
def test_kernels_are_compiled_even_if_they_cannot_be_cached(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As with a read-only cache. Root may write everywhere, so a file is put in place of the folder."""
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    library = build.kernels.__wrapped__(False)
    assert library is not None
    assert library.lanes() > 0
    assert "cannot be cached" in caplog.text


@pytest.mark.parametrize("vocab", [5, 64, 4099])
@pytest.mark.parametrize("rows", [[0], [3, 1], [0, 1, 2, 3]])
def test_forbidden_tokens(fast: CpuOps, dtype: torch.dtype, vocab: int, rows: list[int]) -> None:
    masks = torch.randint(0, 256, (len(rows), vocab // 8 + 3), dtype=torch.uint8)
    masks[torch.rand(masks.shape) < 0.4] = 0
    masks[torch.rand(masks.shape) < 0.4] = 255
    for form in (dtype, torch.float32):
        logits = torch.randn(4, vocab + 9).to(form)[:, 2 : vocab + 2]
        want, plain, got = logits.clone(), logits.clone(), logits  # one has rows apart
        for row, mask in zip(rows, masks, strict=True):
            for token in range(vocab):
                if not mask[token // 8] >> token % 8 & 1:
                    want[row, token] = -torch.inf
        TorchOps().forbid(plain, torch.tensor(rows), masks)
        fast.forbid(got, torch.tensor(rows), masks)
        assert torch.equal(plain, want)
        assert torch.equal(got, want)


def test_a_block_table_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="too short for 17"):
        RaggedBatch.build([(16, 1, [3])], 16, CPU)
