"""The sampling kernel takes the same tokens as the torch sampler: on a GPU, else in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fgengine.ops.reference import TorchOps
from fgengine.ops.triton.ops import TritonOps

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def asked(*rows: tuple[float, float, float, float]) -> Tensor:
    """Make the ``rows`` argument from (temperature, top-k, top-p, draw) of each row."""
    return torch.tensor(rows, dtype=torch.float64, device=DEVICE)


def chosen(logits: Tensor, rows: Tensor) -> list[int]:
    tokens = TritonOps().sample(logits, rows)
    assert tokens.dtype is torch.int64
    made: list[int] = tokens.tolist()
    return made


def random_rows(count: int, vocab: int) -> Tensor:
    """Make rows of every kind: greedy, without cuts, and with cuts of every size by top-k, top-p or both."""
    kind = torch.arange(count) % 6
    temperature = torch.where(kind == 0, 0.0, 0.05 + 2.5 * torch.rand(count))
    top_k = torch.where((kind == 2) | (kind == 4), (vocab ** torch.rand(count)).ceil(), 0.0)
    top_p = torch.where((kind == 3) | (kind == 4), torch.rand(count).clamp(min=1e-6), 1.0)
    top_p = torch.where(kind == 5, 1 - 10 ** (-1 - 5 * torch.rand(count)), top_p)
    draw = torch.rand(count, dtype=torch.float64)
    return torch.stack((temperature.double(), top_k.double(), top_p.double(), draw), 1).to(DEVICE)


def assert_alike(logits: Tensor, rows: Tensor) -> None:
    """Check for the same tokens. Rounding may decide once: then allow tokens of slightly different draws."""
    got = TritonOps().sample(logits, rows)
    want = TorchOps().sample(logits, rows)
    off = (got != want).nonzero().squeeze(1)
    assert len(off) <= 1
    for row in off.tolist():
        near = rows[row].repeat(2, 1)
        near[:, 3] = (near[:, 3] + torch.tensor([-1e-5, 1e-5], device=DEVICE)).clamp(0.0, 1.0 - 1e-12)
        low, high = TorchOps().sample(logits[row].expand(2, -1), near).tolist()
        assert low <= got[row] <= high, rows[row]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("vocab", "count"), [(1, 6), (5, 12), (700, 18), (20_000, 6)])
@pytest.mark.slow
def test_tokens_equal_the_torch_samplers(vocab: int, count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab)
    logits = (torch.randn(count, vocab) * torch.rand(count, 1) * 8).to(dtype).to(DEVICE)
    assert_alike(logits, random_rows(count, vocab))


@pytest.mark.parametrize("remaining", [1, 3, 60])
@pytest.mark.slow
def test_forbidden_tokens_are_never_chosen(remaining: int) -> None:
    """Logits of -inf, as min_p and min_tokens set them; also if top-k would keep more than remain."""
    torch.manual_seed(remaining)
    logits = torch.full((30, 700), -torch.inf)
    for row in range(30):
        allowed = torch.randperm(700)[:remaining]
        logits[row, allowed] = torch.randn(remaining) * 4
    logits = logits.to(DEVICE)
    rows = random_rows(30, 700)
    assert_alike(logits, rows)
    tokens = TritonOps().sample(logits, rows)
    assert logits.gather(1, tokens.unsqueeze(1)).isfinite().all()


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(50272, torch.float16), (49152, torch.float32), (128256, torch.bfloat16)]
)
@pytest.mark.slow
def test_tokens_equal_the_torch_samplers_at_real_vocabulary_sizes(vocab: int, dtype: torch.dtype) -> None:
    """bfloat16 has few values, so hundreds of logits are equal to any threshold."""
    torch.manual_seed(vocab)
    logits = (torch.randn(5, vocab) * 3).to(dtype).to(DEVICE)
    rows = asked(
        (0.0, 0, 1.0, 0.5),
        (1.0, 0, 1.0, 0.7),
        (1.0, 50, 1.0, 0.6),
        (1.0, 0, 0.9, 0.3),
        (0.8, 20_000, 0.95, 0.8),
    )
    assert_alike(logits, rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow
def test_equal_logits_rank_by_their_place(dtype: torch.dtype) -> None:
    """Few values make many ties. 0 equals -0, although their bits differ."""
    torch.manual_seed(1)
    logits = torch.randint(-2, 3, (18, 700), device=DEVICE).to(dtype)
    logits[::2] = logits[::2] * 0.0  # zeros of either sign
    rows = random_rows(18, 700)
    assert_alike(logits, rows)
    ties = torch.zeros(5, 700, device=DEVICE, dtype=dtype)
    ties[:, ::3] = -0.0
    draws = [(n + 0.5) / 5 for n in range(5)]
    assert chosen(ties, asked(*[(1.0, 5, 1.0, u) for u in draws])) == list(range(5))
    assert chosen(ties, asked(*[(1.0, 0, 5 / 700 - 1e-6, u) for u in draws])) == list(range(5))
    assert chosen(ties[:1], asked((0.0, 0, 1.0, 0.5))) == [0]


@pytest.mark.slow
def test_each_token_has_its_share_of_the_draws() -> None:
    """Evenly spaced draws give each token as often as its probability requires."""
    weights = torch.tensor([0.25, 0.15, 0.06, 0.48, 0.06], device=DEVICE)
    cases = [
        ((0, 1.0), [0.25, 0.15, 0.06, 0.48, 0.06]),
        ((2, 1.0), [0.25 / 0.73, 0, 0, 0.48 / 0.73, 0]),
        ((0, 0.85), [0.25 / 0.88, 0.15 / 0.88, 0, 0.48 / 0.88, 0]),
        ((3, 0.6), [0.25 / 0.73, 0, 0, 0.48 / 0.73, 0]),
        ((99, 1e-9), [0, 0, 0, 1.0, 0]),
    ]
    for (top_k, top_p), shares in cases:
        rows = asked(*[(1.0, top_k, top_p, (n + 0.5) / 9) for n in range(9)])
        tokens = chosen(weights.log().half().expand(9, -1), rows)
        assert tokens == sorted(tokens), "the vocabulary's order"
        counts = torch.bincount(torch.tensor(tokens), minlength=5)
        assert (counts - 9 * torch.tensor(shares)).abs().max() <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow
def test_extreme_temperatures_draws_and_logits(dtype: torch.dtype) -> None:
    inf = float("inf")
    logits = torch.tensor([[0.0, 3.0, -inf, 3.0, -inf]], dtype=dtype, device=DEVICE).expand(6, -1)
    almost = 1 - 2.0**-53
    rows = asked(
        (1e-300, 0, 1.0, 0.0),  # below the coldest temperature: takes one of the largest
        (1e-300, 0, 1.0, almost),
        (1.0, 0, 1.0, 0.0),
        (10.0, 4, 1.0, almost),  # one of the four largest has no mass
        (1.0, 0, almost, almost),
        (1.0, 4, almost, almost),
    )
    assert chosen(logits, rows) == [1, 3, 0, 3, 3, 3]
    assert chosen(logits, rows) == TorchOps().sample(logits, rows).tolist()


@pytest.mark.slow
def test_tokens_beyond_the_first_tile_are_found() -> None:
    """More logits than a tile remain. The last tile, to which the draw may round, has no mass."""
    torch.manual_seed(3)
    logits = torch.randn(6, 20_000, device=DEVICE).half()
    logits[:3, :8192] += 8
    logits[3:, 16384:] = -float("inf")
    draws = (0.001, 0.999999, 0.9999999, 1 - 2.0**-53, 1 - 2.0**-53, 1 - 2.0**-53)
    rows = asked(*[(1.0, 15_000 if n < 3 else 0, 1.0, draw) for n, draw in enumerate(draws)])
    assert_alike(logits, rows)
    assert max(chosen(logits, rows)[:3]) >= 8192
    assert max(chosen(logits, rows)[3:]) < 16384


def test_a_token_is_in_the_vocabulary_for_any_logits() -> None:
    nothing = torch.full((4, 700), float("nan"), device=DEVICE)
    nothing[1::2] = -float("inf")
    rows = asked((0.0, 0, 1.0, 0.5), (0.0, 0, 1.0, 0.5), (1.0, 5, 0.9, 0.5), (1.0, 5, 0.9, 0.5))
    assert all(0 <= token < 700 for token in chosen(nothing, rows))


@pytest.mark.slow
def test_a_token_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    logits, rows = torch.randn(12, 3000, device=DEVICE).half(), random_rows(12, 3000)
    together = chosen(logits, rows)
    assert together == [chosen(logits[n : n + 1], rows[n : n + 1])[0] for n in range(12)]


@pytest.mark.slow
def test_logits_may_be_part_of_wider_rows() -> None:
    torch.manual_seed(0)
    wide, rows = torch.randn(6, 900, device=DEVICE).half(), random_rows(6, 700)
    wide[:, 700:] = float("nan")
    assert chosen(wide[:, :700], rows) == chosen(wide[:, :700].contiguous(), rows)


def test_an_empty_batch_has_no_tokens() -> None:
    assert (
        chosen(torch.empty(0, 50, device=DEVICE), torch.empty(0, 4, dtype=torch.float64, device=DEVICE)) == []
    )
