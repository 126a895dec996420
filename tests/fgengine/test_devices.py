"""The catalog of devices, figures of one's own, and quantities with units."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fgengine.devices import DEVICES, GIB, custom_device, device_spec
from fgengine.efficiency import REASONS, Efficiency
from fgengine.quantities import bytes_of, bytes_per_second, flops_per_second


def test_an_a100_has_the_figures_of_its_data_sheet() -> None:
    spec = device_spec("a100-40gb")
    assert spec.memory_bytes == 40 * GIB
    assert (spec.bytes_per_second, spec.flops("float16"), spec.flops("bfloat16")) == (
        1.555e12,
        312e12,
        312e12,
    )
    assert (spec.flops("float32"), spec.link_bytes_per_second) == (19.5e12, 32e9)
    assert "data sheet" in spec.source


def test_every_device_of_the_catalog_has_plausible_figures_and_a_source() -> None:
    wanted = {"a100-40gb", "a100-80gb", "h100-sxm", "h200", "l40s", "rtx4090", "mi300x"}
    assert set(DEVICES) == wanted
    for spec in DEVICES.values():
        assert spec.source.startswith(("NVIDIA", "AMD"))
        # Dense: with sparsity, an H100 would have 1,979 TFLOP/s.
        assert 100e12 < spec.flops("float16") < 1400e12
        assert 30 < spec.flops("float16") / spec.bytes_per_second < 450
        assert spec.flops("float32") < spec.flops("float16")
        assert spec.link_bytes_per_second in (32e9, 64e9)  # one direction of 16 lanes of PCIe 4 or 5


def test_an_unknown_device_is_refused_with_the_known_names() -> None:
    with pytest.raises(
        ValueError, match=r"no device 'a1000' in the catalog: choose one of a100-40gb, .*mi300x"
    ):
        device_spec("a1000")


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "fast", True])
def test_a_figure_must_be_a_number_above_0(value: object) -> None:
    with pytest.raises(ValueError, match="a100-40gb: bytes_per_second must be a number"):
        replace(device_spec("a100-40gb"), bytes_per_second=value)  # type: ignore[arg-type]


def test_a_custom_device_knows_only_the_format_of_its_figure() -> None:
    figures = {"memory_bytes": 64 * GIB, "bytes_per_second": 2e12, "link_bytes_per_second": 64e9}
    spec = custom_device(**figures, flops=400e12, dtype="bfloat16")  # type: ignore[arg-type]
    assert spec.flops("float16") == 400e12
    assert spec.name == "custom-64GiB-2000GB/s-400TFLOP/s-64GB/s"
    with pytest.raises(ValueError, match=r"no FLOP/s in float32: choose another --dtype"):
        spec.flops("float32")
    assert custom_device(**figures, flops=40e12, dtype="float32").flops("float32") == 40e12  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1555GB/s", 1.555e12),
        ("1,555 GB/s", 1.555e12),
        ("1.555TB/s", 1.555e12),
        ("2e3 GB/s", 2e12),
        ("1GiB/s", GIB),
    ],
)
def test_bandwidths_with_units_are_read(text: str, value: float) -> None:
    assert bytes_per_second(text) == pytest.approx(value)


def test_sizes_and_operations_are_read() -> None:
    assert bytes_of("40GiB") == 40 * GIB
    assert bytes_of("141 GB") == 141 * 10**9
    assert flops_per_second("312TFLOP/s") == flops_per_second("312 TFLOPS") == 312e12
    assert flops_per_second("0.312 PFLOP/s") == pytest.approx(312e12)


@pytest.mark.parametrize(
    "text", ["", "fast", "1555", "-1GB/s", "0GB/s", "nanGB/s", "1e99GB/s", "40GiB", "1XB/s"]
)
def test_what_is_no_bandwidth_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a bandwidth, such as 1555GB/s: give a number above 0"):
        bytes_per_second(text)


def test_each_assumption_has_a_reason_and_a_changed_one_says_so() -> None:
    reasons = dict(Efficiency().reasons())
    assert set(reasons) == set(REASONS) == set(Efficiency.__dataclass_fields__)
    assert reasons["bandwidth"].startswith("85% of the memory bandwidth: copies")
    assert (
        dict(Efficiency(bandwidth=0.5).reasons())["bandwidth"] == "50% of the memory bandwidth: set by hand"
    )


@pytest.mark.parametrize("values", [{"flops": 0.0}, {"flops": 1.5}, {"link": "all"}, {"step_seconds": -1.0}])
def test_an_impossible_efficiency_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"efficiency: {next(iter(values))} must be"):
        Efficiency(**values)
