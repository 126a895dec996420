"""Executes a StepPlan: tokens in, logits, sampled tokens out."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import torch
from torch import Tensor

from fgengine.config import EngineConfig
from fgengine.execution import memory
from fgengine.execution.copying import copy_engine
from fgengine.execution.device import device_name, pick_device, pick_dtype
from fgengine.execution.pinned import pinned_empty
from fgengine.execution.sampler import logprobs_of, sample
from fgengine.kv import sizing
from fgengine.model.loader import Model, load, pack_linears
from fgengine.model.shape import ModelShape
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.select import ops_for
from fgengine.plan import StepPlan, StepResult


class TorchRunner:
    """A model, its two KV pools, and the copy engine between them."""

    def __init__(
        self,
        model: Model,
        *,
        block_size: int,
        num_device_blocks: int,
        num_host_blocks: int,
        max_model_len: int,
        seed: int = 0,
    ) -> None:
        """``model``'s embedding says the device and dtype; sizes in blocks and tokens.

        Raises ValueError where there is no memory for a pool.
        """
        self.model = model
        self.shape = shape = model.shape
        self.device, self.dtype = model.embedding.device, model.embedding.dtype
        self.block_size = block_size
        self.num_device_blocks, self.num_host_blocks = num_device_blocks, num_host_blocks
        self.max_model_len = max_model_len
        self.seed = seed
        self.block_bytes = sizing.block_bytes(shape, block_size, self.dtype.itemsize)
        self.device_name = device_name(self.device)
        self.dtype_name = str(self.dtype).removeprefix("torch.")
        block = (shape.num_layers, 2, shape.num_kv_heads, block_size, shape.head_dim)
        self.dummy_block = num_device_blocks
        """The pool's last block, which no request ever gets: for rows that only fill up a batch."""
        self.pool = _pool(
            (num_device_blocks + sizing.DUMMY_BLOCKS, *block),
            self.dtype,
            self.device,
            "lower num_device_blocks",
        )
        self.host_pool = _host_pool((num_host_blocks, *block), self.dtype, pinned=self.device.type == "cuda")
        self.copies = copy_engine(self.pool[:num_device_blocks], self.host_pool)

    @classmethod
    def create(
        cls,
        config: EngineConfig,
        shape: ModelShape,
        folder: Path | None,
        report: Callable[[str], None] = lambda line: None,
    ) -> TorchRunner:
        """Picks device and dtype, loads the model (None: dummy weights) and sizes the pools.

        ``report`` is told how the memory was divided.

        Raises:
            ValueError: no such device, a folder that is not this model's, a longer ``max_model_len`` than the
                model was made for, or no memory for the weights, a step, or the KV blocks asked for.
        """
        max_model_len = config.max_model_len or shape.max_position
        if max_model_len > shape.max_position:
            raise ValueError(
                f"max_model_len {max_model_len} is more than the {shape.max_position} tokens this model "
                "was made for"
            )
        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, device, shape.family)
        gpu = memory.probe_of(device)
        if gpu is not None:
            memory.require_room_for_weights(shape.num_parameters, dtype, gpu)
        model = load(shape, folder, device, dtype, config.seed)
        model.ops = ops_for(device, dtype)
        per_block = sizing.block_bytes(shape, config.block_size, dtype.itemsize)

        def runner(device_blocks: int, host_blocks: int) -> TorchRunner:
            return cls(
                model,
                block_size=config.block_size,
                num_device_blocks=device_blocks,
                num_host_blocks=host_blocks,
                max_model_len=max_model_len,
                seed=config.seed,
            )

        if gpu is not None:
            report("running the largest steps once, to see how much memory is left for KV")
            with closing(runner(1, 0)) as trial:
                measured = memory.measure(trial, config, gpu, graphs=True)
            parts, blocks = measured.parts, sizing.device_blocks_on_gpu(config, per_block, measured)
        else:
            pack_linears(model)
            parts = {"weights": shape.num_parameters * dtype.itemsize}
            blocks = sizing.device_blocks_on_cpu(config, per_block, psutil.virtual_memory().available)
        on_host = sizing.host_blocks(config, per_block)
        report(sizing.division(parts, blocks, on_host, config.block_size, per_block))
        return runner(blocks, on_host)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Computes the plan's items in one pass; seconds include reading the tokens back."""
        began = time.perf_counter()
        ending = [item for item in plan.items if item.yields_token]
        yielding = [item.request for item in ending]
        tokens: list[int] = []
        logprobs: dict[str, float] = {}
        if plan.items:
            logits = self.logits(plan)
            if yielding:
                positions = [item.start + item.num_tokens - item.request.prompt_len for item in ending]
                chosen = sample(self.model.ops, logits, yielding, positions, self.seed)
                asked = [row for row, request in enumerate(yielding) if request.params.logprobs]
                if asked:
                    values = logprobs_of(logits[asked], chosen[asked]).tolist()
                    logprobs = {yielding[row].id: value for row, value in zip(asked, values, strict=True)}
                tokens = chosen.tolist()
            elif self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        ids = [request.id for request in yielding]
        return StepResult(
            plan.step, time.perf_counter() - began, dict(zip(ids, tokens, strict=True)), logprobs
        )

    @torch.inference_mode()
    def logits(self, plan: StepPlan, everywhere: bool = False) -> Tensor:
        """[R, vocab_size]: a row for each item that yields a token, or for each new token ``everywhere``."""
        items = plan.items
        batch = RaggedBatch.build(
            [(item.start, item.num_tokens, item.blocks) for item in items], self.block_size, self.device
        )
        known = itertools.chain.from_iterable(
            item.request.tokens[item.start : item.start + item.num_tokens] for item in items
        )
        tokens = torch.tensor(list(known), device=self.device)
        rows: Tensor | None = None
        if not everywhere:
            ends = itertools.accumulate(item.num_tokens for item in items)
            last = [end - 1 for end, item in zip(ends, items, strict=True) if item.yields_token]
            rows = torch.tensor(last, dtype=torch.int64, device=self.device)
        logits: Tensor = self.model(tokens, batch, self.pool, rows)
        return logits

    @contextmanager
    def larger_pool(self, num_blocks: int) -> Iterator[None]:
        """Meanwhile computes in a pool of at least so many blocks; what is in its own is kept."""
        own = self.pool, self.num_device_blocks, self.dummy_block
        if num_blocks > self.num_device_blocks:
            sizes = (num_blocks + sizing.DUMMY_BLOCKS, *self.pool.shape[1:])
            remedy = "as a profile needs it: give a profile measured before, or a larger num_device_blocks"
            self.pool = _pool(sizes, self.dtype, self.device, remedy)
            self.num_device_blocks = self.dummy_block = num_blocks
        try:
            yield
        finally:
            self.pool, self.num_device_blocks, self.dummy_block = own

    def close(self) -> None:
        self.copies.close()


def _pool(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device, remedy: str) -> Tensor:
    """Not filled: on a CPU a block takes memory only once it is written."""
    try:
        return torch.empty(sizes, dtype=dtype, device=device)
    except RuntimeError as error:
        wanted = sizing.size(math.prod(sizes) * dtype.itemsize)
        raise ValueError(f"there is no memory for a KV pool of {wanted}; {remedy}") from error


def _host_pool(sizes: tuple[int, ...], dtype: torch.dtype, *, pinned: bool) -> Tensor:
    if not pinned:
        return _pool(sizes, dtype, torch.device("cpu"), "lower swap_space_bytes")
    try:
        return pinned_empty(sizes, dtype)
    except ValueError as error:
        raise ValueError(
            f"there is no host memory for evicted KV: {error}; lower swap_space_bytes"
        ) from error
