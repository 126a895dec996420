"""Reads the power and energy of the GPUs from NVML, the library of NVIDIA's driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class GpuMeter:
    """The power and energy of all GPUs of this machine; ``read`` is empty if there are none.

    It needs the package nvidia-ml-py, which vLLM installs. GPUs of other machines cannot be read. What other
    programs use of the GPUs counts too.

        GpuMeter().read()  # {"gpu_power_w": 412.0, "gpu_energy_j": 90210.5}
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except pynvml.NVMLError:
            return  # no driver, or no permission
        self._nvml = pynvml

    def read(self) -> dict[str, float]:
        """Return the power now (watts) and the energy since the driver was loaded (joules), over all GPUs.

        A figure that a GPU does not report is missing: those before Volta count no energy.
        """
        if self._nvml is None or not self._handles:
            return {}
        return {name: total / 1000.0 for name, total in self._totals()}  # from milliwatts and millijoules

    def _totals(self) -> Iterator[tuple[str, float]]:
        for name, read in (
            ("gpu_power_w", self._nvml.nvmlDeviceGetPowerUsage),
            ("gpu_energy_j", self._nvml.nvmlDeviceGetTotalEnergyConsumption),
        ):
            with contextlib.suppress(self._nvml.NVMLError):
                yield name, sum(map(read, self._handles))
