"""Compiles the kernels that a function launches, for a GPU that need not exist, and prints their resources.

It must run in a separate process, because the tests' process uses Triton's interpreter.
``python compiled.py FILE FUNCTION ARCHITECTURE ARGUMENTS`` calls the function in that Python file with the
arguments (a JSON list). The function launches kernels as usual, on tensors of torch's "meta" device. Each
launch is specialized and compiled as on the GPU, but not run. Prints a JSON list with one entry per launch.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver


class AbsentGPU:
    """The part of a GPU driver that a launch needs before it has a compiled kernel."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(kernel: Any) -> dict[str, Any]:
    """Return a kernel's registers per thread, spilled bytes per thread and shared memory per program."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        printed = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
    return {
        "registers": used["REG"],
        "spilt": used["STACK"] + used["LOCAL"],
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "key": kernel.hash,
    }


def launches(path: str, function: str, architecture: int, arguments: list[Any]) -> list[dict[str, Any]]:
    """Call the function and return the resources of each kernel that it launches."""
    found: list[dict[str, Any]] = []

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        made = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        found.append({"kernel": kernel.fn.__name__, "grid": list(grid), **resources(made)})

    driver.set_active(AbsentGPU(architecture))  # type: ignore[arg-type]
    run, triton.JITFunction.run = triton.JITFunction.run, compile_only
    spec = importlib.util.spec_from_file_location("launching", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, function)(*arguments)
    return found


if __name__ == "__main__":
    print(json.dumps(launches(sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))))
