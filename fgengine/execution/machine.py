"""The machine a model is to run on: its free memory, and no model is loaded that does not fit there."""

from __future__ import annotations

import sys

import msgspec

from fgengine.config import EngineConfig
from fgengine.execution import memory
from fgengine.execution.device import pick_device, pick_dtype
from fgengine.execution.host_memory import host_memory
from fgengine.execution.memory import MemoryProbe
from fgengine.kv.fitting import Candidate, Machine, Memory, shortage
from fgengine.model.catalog import CATALOG, shape_of
from fgengine.model.shape import ModelShape


def require_memory(config: EngineConfig, shape: ModelShape) -> None:
    """Returns where the model, and what else was set by hand, fits into the memory that is free now.

    Raises:
        ValueError: it does not, or there is no such device; says what is needed, what is free and what would
            fit.
    """
    device = pick_device(config.device)

    def candidate(name: str, shape: ModelShape) -> Candidate:
        return Candidate(name, shape, pick_dtype(config.dtype, device, shape.family).itemsize)

    others = [candidate(entry.name, entry.shape) for entry in CATALOG.values()]
    machine = machine_of(memory.probe_of(device))
    if (reason := shortage(candidate(config.model, shape), config, machine, others)) is not None:
        raise ValueError(reason)


def machine_of(gpu: MemoryProbe | None) -> Machine:
    """What is free now; without a ``gpu`` the CPU computes."""
    host = Memory(*host_memory())
    if gpu is None:
        return Machine(host)
    gpu.settle()
    return Machine(host, Memory(*gpu.free_and_total()))


def main() -> int:
    """Check the configuration on standard input, as JSON. Exits with 1 and the reason if it does not fit."""
    read = sys.stdin.buffer.read()
    config = msgspec.json.decode(read, type=EngineConfig, dec_hook=lambda kind, value: kind(value))
    try:
        require_memory(config, shape_of(config.model))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
