"""Packed linear layers, compared with float32 arithmetic on the same inputs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgengine.model.layers import Linear
from fgengine.ops.cpu import linear
from fgengine.ops.cpu.linear import PackedLinear, pack_linear

CPU = torch.device("cpu")
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 1e-5}


def layer_of(inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> tuple[Linear, Linear]:
    """Return the same layer twice: packed in ``dtype``, and unpacked in float32."""
    torch.set_num_threads(2)
    torch.manual_seed(inputs + outputs)
    packed = Linear(inputs, outputs, bias, CPU, dtype)
    plain = Linear(inputs, outputs, bias, CPU, torch.float32)
    for value, wide in zip(packed.parameters(), plain.parameters(), strict=True):
        wide.data.normal_()
        value.data.copy_(wide)
        wide.data.copy_(value)
    packed.pack()
    assert packed.packed is not None
    assert packed.weight.numel() == 0, "the plain weight is freed"
    return packed, plain


def assert_near(got: Tensor, want: Tensor, inputs: int) -> None:
    """Allow for rounding of the result, and of sums whose terms cancel."""
    slack = 1e-6 * inputs
    torch.testing.assert_close(got.float(), want, rtol=ROUNDING[got.dtype], atol=slack)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (64, 33), (63, 47), (7, 1), (2048, 80)])
@pytest.mark.slow
def test_a_packed_layer_computes_the_same_result(
    inputs: int, outputs: int, bias: bool, dtype: torch.dtype
) -> None:
    packed, plain = layer_of(inputs, outputs, bias, dtype)
    for rows in (*range(1, 50), 96, 97, 205):
        x = torch.randn(rows, inputs).to(dtype)
        assert_near(packed(x), plain(x.float()), inputs)


def test_rows_may_be_strided_or_transposed() -> None:
    packed, plain = layer_of(96, 64, True, torch.bfloat16)
    wide = torch.randn(10, 300).bfloat16()
    assert_near(packed(wide[:, 50:146]), plain(wide[:, 50:146].float()), 96)
    assert_near(packed(wide[:, :96].T.contiguous().T), plain(wide[:, :96].float()), 96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    """Bit for bit, because a request's output must not depend on its batch."""
    packed, _ = layer_of(576, 200, True, dtype)
    x = torch.randn(131, 576).to(dtype)
    alone = torch.cat([packed(row) for row in x.unsqueeze(1)])
    for rows in (2, 12, 13, 29, 131):
        assert torch.equal(packed(x[:rows]), alone[:rows])


def test_without_a_kernel_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "kernels", lambda bfloat16: None)
    plain = Linear(64, 48, True, CPU, torch.bfloat16)
    for value in plain.parameters():
        value.data.normal_()
    plain.pack()
    assert plain.packed is None
    x = torch.randn(5, 64).bfloat16()
    assert torch.equal(plain(x), F.linear(x, plain.weight, plain.bias))
    assert pack_linear(torch.randn(8, 8).half(), None) is None


def test_a_wrong_result_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PackedLinear, "__call__", lambda self, x, bias: x + 1.0)
    assert pack_linear(torch.randn(8, 8), None) is None
    assert "off by" in caplog.text
