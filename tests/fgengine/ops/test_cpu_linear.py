"""Packed linear layers against float32 arithmetic on the same inputs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgengine.model.layers import Linear
from fgengine.ops.cpu import linear
from fgengine.ops.cpu.build import kernels
from fgengine.ops.cpu.linear import OwnLinear, pack_linear
from fgengine.ops.cpu.processor import cpu_flags

CPU = torch.device("cpu")
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 1e-5}


def layer_of(inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> tuple[Linear, Linear]:
    """The same layer twice: packed, and in float32 as it is."""
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
    assert packed.weight.numel() == 0, "the plain weight is let go"
    return packed, plain


def assert_near(got: Tensor, want: Tensor, inputs: int) -> None:
    """Within the rounding of the result, and of sums whose terms cancel."""
    slack = 1e-6 * inputs
    torch.testing.assert_close(got.float(), want, rtol=ROUNDING[got.dtype], atol=slack)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (64, 33), (63, 47), (7, 1), (2048, 80)])
def test_packed_linear(inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
    packed, plain = layer_of(inputs, outputs, bias, dtype)
    for rows in (*range(1, 50), 96, 97, 205):
        x = torch.randn(rows, inputs).to(dtype)
        assert_near(packed(x), plain(x.float()), inputs)


def test_rows_may_lie_apart_and_transposed() -> None:
    packed, plain = layer_of(96, 64, True, torch.bfloat16)
    wide = torch.randn(10, 300).bfloat16()
    assert_near(packed(wide[:, 50:146]), plain(wide[:, 50:146].float()), 96)
    assert_near(packed(wide[:, :96].T.contiguous().T), plain(wide[:, :96].float()), 96)


def test_a_row_does_not_depend_on_the_others() -> None:
    """To the bit: what a request says must not depend on what it is batched with."""
    if "avx512_bf16" not in cpu_flags():
        return  # oneDNN computes there, which promises nothing
    packed, _ = layer_of(576, 200, True, torch.bfloat16)
    assert isinstance(packed.packed, OwnLinear)
    x = torch.randn(131, 576).bfloat16()
    alone = torch.cat([packed(row) for row in x.unsqueeze(1)])
    for rows in (2, 12, 13, 29, 131):
        assert torch.equal(packed(x[:rows]), alone[:rows])


def test_elsewhere_onednn_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "kernels", lambda bfloat16: None)
    packed, plain = layer_of(64, 48, True, torch.bfloat16)
    assert not isinstance(packed.packed, OwnLinear)
    x = torch.randn(5, 64).bfloat16()
    assert_near(packed(x), plain(x.float()), 64)


def test_a_wrong_result_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weight = torch.randn(8, 8)
    monkeypatch.setattr(linear, "_onednn", lambda weight: lambda x, bias: F.linear(x, weight) + 1.0)
    assert pack_linear(weight, None) is None
    assert "off by" in caplog.text


def test_the_kernel_is_there_where_the_processor_has_it() -> None:
    library = kernels(True)
    assert library is not None
    assert hasattr(library, "linear") == ("avx512_bf16" in cpu_flags())
