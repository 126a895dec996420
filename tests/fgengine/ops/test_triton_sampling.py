"""The sampling kernel chooses the torch sampler's tokens: in the interpreter, or on a GPU if there is one."""

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
    """Temperature, top-k, top-p and draw of each row."""
    return torch.tensor(rows, dtype=torch.float64, device=DEVICE)


def chosen(logits: Tensor, rows: Tensor) -> list[int]:
    tokens = TritonOps().sample(logits, rows)
    assert tokens.dtype is torch.int64
    made: list[int] = tokens.tolist()
    return made


def random_rows(count: int, vocab: int) -> Tensor:
    """Every kind of request: greedy, whole, cut by one or both, and cuts of every size."""
    kind = torch.arange(count) % 6
    temperature = torch.where(kind == 0, 0.0, 0.05 + 2.5 * torch.rand(count))
    top_k = torch.where((kind == 2) | (kind == 4), (vocab ** torch.rand(count)).ceil(), 0.0)
    top_p = torch.where((kind == 3) | (kind == 4), torch.rand(count).clamp(min=1e-6), 1.0)
    top_p = torch.where(kind == 5, 1 - 10 ** (-1 - 5 * torch.rand(count)), top_p)
    draw = torch.rand(count, dtype=torch.float64)
    return torch.stack((temperature.double(), top_k.double(), top_p.double(), draw), 1).to(DEVICE)


def assert_alike(logits: Tensor, rows: Tensor) -> None:
    """The same tokens; but where rounding decides, those at draws a little to either side."""
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
def test_the_torch_samplers_tokens(vocab: int, count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab)
    logits = (torch.randn(count, vocab) * torch.rand(count, 1) * 8).to(dtype).to(DEVICE)
    assert_alike(logits, random_rows(count, vocab))


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(50272, torch.float16), (49152, torch.float32), (128256, torch.bfloat16)]
)
def test_real_vocabularies(vocab: int, dtype: torch.dtype) -> None:
    """bfloat16 has few values: hundreds of logits are equal to any threshold."""
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
def test_equal_logits_rank_by_their_place(dtype: torch.dtype) -> None:
    """Few values, many ties; and 0 equals -0, though their bits do not."""
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


def test_each_token_has_its_share_of_the_draws() -> None:
    """Draws evenly spread fall on each token as often as its probability says."""
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
def test_the_ends_of_the_range(dtype: torch.dtype) -> None:
    inf = float("inf")
    logits = torch.tensor([[0.0, 3.0, -inf, 3.0, -inf]], dtype=dtype, device=DEVICE).expand(6, -1)
    almost = 1 - 2.0**-53
    rows = asked(
        (1e-300, 0, 1.0, 0.0),  # colder than any: one of the largest
        (1e-300, 0, 1.0, almost),
        (1.0, 0, 1.0, 0.0),
        (10.0, 4, 1.0, almost),  # among the four largest is one without mass
        (1.0, 0, almost, almost),
        (1.0, 4, almost, almost),
    )
    assert chosen(logits, rows) == [1, 3, 0, 3, 3, 3]
    assert chosen(logits, rows) == TorchOps().sample(logits, rows).tolist()


def test_what_lies_behind_the_first_tile() -> None:
    """More than a tile of logits are kept, and the last tile, where the draw may round to, has no mass."""
    torch.manual_seed(3)
    logits = torch.randn(6, 20_000, device=DEVICE).half()
    logits[:3, :8192] += 8
    logits[3:, 16384:] = -float("inf")
    draws = (0.001, 0.999999, 0.9999999, 1 - 2.0**-53, 1 - 2.0**-53, 1 - 2.0**-53)
    rows = asked(*[(1.0, 15_000 if n < 3 else 0, 1.0, draw) for n, draw in enumerate(draws)])
    assert_alike(logits, rows)
    assert max(chosen(logits, rows)[:3]) >= 8192
    assert max(chosen(logits, rows)[3:]) < 16384


def test_a_token_is_in_the_vocabulary_whatever_the_logits_are() -> None:
    nothing = torch.full((4, 700), float("nan"), device=DEVICE)
    nothing[1::2] = -float("inf")
    rows = asked((0.0, 0, 1.0, 0.5), (0.0, 0, 1.0, 0.5), (1.0, 5, 0.9, 0.5), (1.0, 5, 0.9, 0.5))
    assert all(0 <= token < 700 for token in chosen(nothing, rows))


def test_a_token_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    logits, rows = torch.randn(12, 3000, device=DEVICE).half(), random_rows(12, 3000)
    together = chosen(logits, rows)
    assert together == [chosen(logits[n : n + 1], rows[n : n + 1])[0] for n in range(12)]


def test_logits_may_stand_in_wider_rows() -> None:
    torch.manual_seed(0)
    wide, rows = torch.randn(6, 900, device=DEVICE).half(), random_rows(6, 700)
    wide[:, 700:] = float("nan")
    assert chosen(wide[:, :700], rows) == chosen(wide[:, :700].contiguous(), rows)


def test_nobody() -> None:
    assert (
        chosen(torch.empty(0, 50, device=DEVICE), torch.empty(0, 4, dtype=torch.float64, device=DEVICE)) == []
    )
