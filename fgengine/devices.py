"""The catalog of devices: memory, bandwidth, arithmetic and link, as their vendors publish them. Pure.

Rates are dense peaks: the weights that we run have no structured sparsity. Data sheets print the memory of a
card in GB, but its chips have powers of two, so those figures are read as GiB. A bandwidth of PCIe is that of
one direction; data sheets print the sum of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from fgengine.config import GIB
from fgengine.units import size

MAX_NAME = 100
PCIE_4, PCIE_5 = 32e9, 64e9
"""Bytes per second of one direction with 16 lanes, as data sheets round them."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """The published figures of a device.

        spec = device_spec("a100-40gb")
        spec.flops("float16")     # 312e12

    Raises ValueError if a figure is not a number above 0.
    """

    name: str
    memory_bytes: int
    bytes_per_second: float
    """Peak bandwidth of its memory."""
    half_flops: float | None
    """Peak FLOP per second in float16 and bfloat16, accumulated in float32; None: not known."""
    single_flops: float | None
    """Peak FLOP per second in float32; None: not known."""
    link_bytes_per_second: float
    """Peak bandwidth to the host in one direction."""
    source: str
    """The document with the figures."""

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > MAX_NAME or not self.name.isprintable():
            raise ValueError(f"a device's name must have 1 to {MAX_NAME} printable characters: {self.name!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "source") or value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{self.name}: {field.name} must be a number, not {value!r}")
            if not 0.0 < value < math.inf:
                raise ValueError(f"{self.name}: {field.name} must be a number above 0, not {value}")

    def flops(self, dtype: str) -> float:
        """Return the peak FLOP per second in a number format.

        Raises ValueError if the device has no published figure for it.
        """
        rate = self.single_flops if dtype == "float32" else self.half_flops
        if rate is None:
            raise ValueError(f"the figures of {self.name} have no FLOP/s in {dtype}: choose another --dtype")
        return rate

    def describe(self) -> str:
        """Return the figures in one line."""
        rates = [
            f"{rate / 1e12:g} TFLOP/s in {formats}"
            for rate, formats in ((self.half_flops, "16 bits"), (self.single_flops, "float32"))
            if rate is not None
        ]
        return (
            f"{size(self.memory_bytes)} at {self.bytes_per_second / 1e9:,.0f} GB/s, {', '.join(rates)}, "
            f"{self.link_bytes_per_second / 1e9:g} GB/s to the host in each direction"
        )


_CATALOG = (
    DeviceSpec(
        name="a100-40gb",
        memory_bytes=40 * GIB,
        bytes_per_second=1555e9,
        half_flops=312e12,
        single_flops=19.5e12,
        link_bytes_per_second=PCIE_4,
        source="NVIDIA A100 Tensor Core GPU data sheet (A100 40GB SXM)",
    ),
    DeviceSpec(
        name="a100-80gb",
        memory_bytes=80 * GIB,
        bytes_per_second=2039e9,
        half_flops=312e12,
        single_flops=19.5e12,
        link_bytes_per_second=PCIE_4,
        source="NVIDIA A100 Tensor Core GPU data sheet (A100 80GB SXM)",
    ),
    DeviceSpec(
        name="h100-sxm",
        memory_bytes=80 * GIB,
        bytes_per_second=3350e9,
        half_flops=989.4e12,
        single_flops=67e12,
        link_bytes_per_second=PCIE_5,
        source="NVIDIA H100 Tensor Core GPU data sheet (H100 SXM); dense rates are half of its sparse ones",
    ),
    DeviceSpec(
        name="h200",
        memory_bytes=141 * GIB,
        bytes_per_second=4800e9,
        half_flops=989.4e12,
        single_flops=67e12,
        link_bytes_per_second=PCIE_5,
        source="NVIDIA H200 Tensor Core GPU data sheet (H200 SXM); dense rates are half of its sparse ones",
    ),
    DeviceSpec(
        name="l40s",
        memory_bytes=48 * GIB,
        bytes_per_second=864e9,
        half_flops=362.05e12,
        single_flops=91.6e12,
        link_bytes_per_second=PCIE_4,
        source="NVIDIA L40S data sheet",
    ),
    DeviceSpec(
        name="rtx4090",
        memory_bytes=24 * GIB,
        bytes_per_second=1008e9,
        half_flops=165.2e12,
        single_flops=82.6e12,
        link_bytes_per_second=PCIE_4,
        source="NVIDIA Ada GPU Architecture white paper, GeForce RTX 4090 (FP16 with FP32 accumulation)",
    ),
    DeviceSpec(
        name="mi300x",
        memory_bytes=192 * GIB,
        bytes_per_second=5300e9,
        half_flops=1307.4e12,
        single_flops=163.4e12,
        link_bytes_per_second=PCIE_5,
        source="AMD Instinct MI300X accelerator data sheet",
    ),
)
DEVICES = {spec.name: spec for spec in _CATALOG}
"""The devices by name."""


def device_spec(name: str) -> DeviceSpec:
    """Return a device of the catalog. Raises ValueError, with the known names, if there is none."""
    if name not in DEVICES:
        raise ValueError(
            f"there is no device {name!r} in the catalog: choose one of {', '.join(DEVICES)}, or describe "
            "yours with `fgbench profile --bandwidth --flops --link --memory --out FILE` and give FILE"
        )
    return DEVICES[name]


def custom_device(
    *, memory_bytes: int, bytes_per_second: float, flops: float, link_bytes_per_second: float, dtype: str
) -> DeviceSpec:
    """Return a device with the user's own figures. ``flops``: FLOP per second in ``dtype``.

    Its name contains the figures, so that tables distinguish two such devices.
    """
    is_single = dtype == "float32"
    return DeviceSpec(
        name=f"custom-{size(memory_bytes)}-{bytes_per_second / 1e9:g}GB/s-{flops / 1e12:g}TFLOP/s-"
        f"{link_bytes_per_second / 1e9:g}GB/s".replace(" ", ""),
        memory_bytes=memory_bytes,
        bytes_per_second=bytes_per_second,
        half_flops=None if is_single else flops,
        single_flops=flops if is_single else None,
        link_bytes_per_second=link_bytes_per_second,
        source="the options --memory, --bandwidth, --flops and --link",
    )
