"""Creates a runner from a configuration: picks the device, loads the model and sizes the KV pools."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from fgengine.config import EngineConfig
from fgengine.execution import memory
from fgengine.execution.device import pick_device, pick_dtype
from fgengine.execution.host_memory import host_memory
from fgengine.execution.machine import require_memory
from fgengine.execution.runner import TorchRunner
from fgengine.kv import sizing
from fgengine.kv.fitting import step_bytes
from fgengine.model.loader import load, pack_linears
from fgengine.model.shape import ModelShape
from fgengine.ops.select import ops_for


def create_runner(
    config: EngineConfig,
    shape: ModelShape,
    folder: Path | None,
    report: Callable[[str], None] = lambda line: None,
) -> TorchRunner:
    """Pick the device and dtype, load the model, size the pools, and capture CUDA graphs.

    What cannot fit into the free memory is refused before anything is loaded.

    Args:
        folder: the folder of the model's weights; None: dummy weights.
        report: called with sentences about progress and about how the memory was divided.

    Raises:
        ValueError: there is no such device; the folder holds another model; ``max_model_len`` is longer than
            the model supports; or memory is too small for the weights, a step or the requested KV blocks.
    """
    max_model_len = config.max_model_len or shape.max_position
    if max_model_len > shape.max_position:
        raise ValueError(
            f"max_model_len {max_model_len} is more than the {shape.max_position} tokens that this model "
            "supports: lower max_model_len"
        )
    require_memory(config, shape)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device, shape.family)
    gpu = memory.probe_of(device)
    model = load(shape, folder, device, dtype, config.engine_seed)
    model.ops = ops_for(device, dtype)
    per_block = sizing.block_bytes(shape, config.block_size, dtype.itemsize)

    def runner(device_blocks: int, host_blocks: int) -> TorchRunner:
        return TorchRunner(
            model,
            block_size=config.block_size,
            num_device_blocks=device_blocks,
            num_host_blocks=host_blocks,
            max_model_len=max_model_len,
            seed=config.engine_seed,
        )

    if gpu is not None:
        report("running the largest steps once, to measure how much memory is left for KV")
        with closing(runner(1, 0)) as trial:
            measured = memory.measure(trial, config, gpu, graphs=not config.eager)
        parts, blocks = measured.parts, sizing.device_blocks_on_gpu(config, per_block, measured)
        on_host = sizing.gpu_host_blocks(config, blocks, per_block, host_memory().free)
        pools = sizing.Pools(blocks, on_host)
    else:
        pack_linears(model)
        parts = {"weights": shape.num_parameters * dtype.itemsize}
        available = host_memory().free - step_bytes(config, shape, dtype.itemsize)
        pools = sizing.pools_on_cpu(config, per_block, available)
    request_tokens = min(sizing.TYPICAL_REQUEST_TOKENS, max_model_len)
    report(sizing.division(parts, pools, config.block_size, per_block, request_tokens))
    made = runner(pools.device, pools.host)
    if device.type == "cuda" and not config.eager:
        report("capturing CUDA graphs of decode steps (--eager turns them off)")
        made.capture_graphs(config.max_batch_size, track=track("CUDA graphs"))
    return made


T = TypeVar("T")


def track(label: str) -> Callable[[Sequence[T]], Iterable[T]]:
    """Return a function that wraps a sequence with a progress bar on stderr (terminals only)."""

    def over(sequence: Sequence[T]) -> Iterable[T]:
        if not sys.stderr.isatty():
            return sequence
        from rich.console import Console
        from rich.progress import track as bar

        return bar(sequence, description=label, console=Console(stderr=True), transient=True)

    return over
