"""Compiles for a GPU, without one, the kernels that a function launches, and says what they take of it.

In a process of its own, as the tests' own has Triton's interpreter:
``python compiled.py FILE FUNCTION ARCHITECTURE ARGUMENTS`` calls the function in that Python file with the
arguments (a JSON list). It launches kernels as usual, on tensors of torch's "meta" device; each launch is
specialized and compiled as it would be on the GPU but not run. Prints a JSON list, one entry a launch.
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
    """As much of a driver as a launch asks before it has a kernel."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(kernel: Any) -> dict[str, Any]:
    """Registers a thread, bytes of stack (spilt registers) a thread and of shared memory a program."""
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
