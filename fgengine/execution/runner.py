"""Executes a StepPlan: tokens in, logits, sampled tokens out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from fgengine.config import EngineConfig
from fgengine.execution.copying import copy_engine
from fgengine.execution.device import device_name, pick_device, pick_dtype
from fgengine.execution.sampler import logprobs_of, sample
from fgengine.execution.timing import timer_on, to_host
from fgengine.execution.unread import Unread, fill_in, sources
from fgengine.kv import sizing
from fgengine.model.loader import Model, load, pack_linears
from fgengine.model.shape import ModelShape
from fgengine.ops.batch import RaggedBatch, place
from fgengine.ops.select import ops_for
from fgengine.plan import PlanItem, StepPlan, StepResult


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
        kind = {"dtype": self.dtype}
        self.pool = _pool("num_device_blocks", (num_device_blocks, *block), device=self.device, **kind)
        self.host_pool = _pool(
            "swap_space_bytes", (num_host_blocks, *block), pin_memory=self.device.type == "cuda", **kind
        )
        self.copies = copy_engine(self.pool, self.host_pool)
        self._unread: Unread | None = None
        """What the last launched step sampled, until it is collected."""

    @classmethod
    def create(cls, config: EngineConfig, shape: ModelShape, folder: Path | None) -> TorchRunner:
        """Picks device and dtype, loads the model (None: dummy weights) and sizes the pools.

        Raises:
            ValueError: no such device, a folder that is not this model's, a longer ``max_model_len`` than the
                model was made for, or no memory for a single KV block.
        """
        max_model_len = config.max_model_len or shape.max_position
        if max_model_len > shape.max_position:
            raise ValueError(
                f"max_model_len {max_model_len} is more than the {shape.max_position} tokens this model "
                "was made for"
            )
        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, device, shape.family)
        model = load(shape, folder, device, dtype, config.seed)
        model.ops = ops_for(device, dtype)
        per_block = sizing.block_bytes(shape, config.block_size, dtype.itemsize)
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            activations = sizing.activation_bytes(shape, config, dtype.itemsize)
            blocks = sizing.device_blocks_on_gpu(config, per_block, free, total, activations)
        else:
            pack_linears(model)
            blocks = sizing.device_blocks_on_cpu(config, per_block, psutil.virtual_memory().available)
        return cls(
            model,
            block_size=config.block_size,
            num_device_blocks=blocks,
            num_host_blocks=sizing.host_blocks(config, per_block),
            max_model_len=max_model_len,
            seed=config.seed,
        )

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes the plan's items in one pass; seconds include reading the tokens back."""
        return self.launch(plan)()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Begins a step; on a GPU it is then in the stream, behind those launched before.

        A token that is still to be sampled by the one before it never leaves the device. Returns what waits
        for the step's end and reads its tokens.
        """
        timer = timer_on(self.device)
        items = sorted(plan.items, key=lambda item: item.num_tokens > 1)  # decodes first: see RaggedBatch
        ending = [item for item in items if item.yields_token]
        asked = [row for row, item in enumerate(ending) if item.request.params.logprobs]
        tokens = logprobs = torch.empty(0)
        logits = self._logits(items, everywhere=False) if items else torch.empty(0)
        self._unread = None
        if ending:
            positions = [item.start + item.num_tokens - item.request.prompt_len for item in ending]
            chosen = sample(logits, [item.request for item in ending], positions, self.seed)
            places = {item.request: (row, item.start + item.num_tokens) for row, item in enumerate(ending)}
            self._unread = Unread(chosen, places)
            tokens = to_host(chosen)
            if asked:
                rows = place(np.array(asked), self.device)
                logprobs = to_host(logprobs_of(logits[rows], chosen[rows]))
        timer.stop()
        unread = self._unread

        def collect() -> StepResult:
            seconds = timer.wait()
            if self._unread is unread:
                self._unread = None  # from now on the requests have them
            ids = [item.request.id for item in ending]
            return StepResult(
                plan.step,
                seconds,
                dict(zip(ids, tokens.tolist(), strict=True)),
                dict(zip([ids[row] for row in asked], logprobs.tolist(), strict=True)),
            )

        return collect

    @torch.inference_mode()
    def logits(self, plan: StepPlan, everywhere: bool = False) -> Tensor:
        """[R, vocab_size]: a row for each item that yields a token, or for each new token ``everywhere``."""
        return self._logits(plan.items, everywhere)

    def _logits(self, items: Sequence[PlanItem], everywhere: bool) -> Tensor:
        batch = RaggedBatch.build(
            [(item.start, item.num_tokens, item.blocks) for item in items], self.block_size, self.device
        )
        known = itertools.chain.from_iterable(
            item.request.tokens[item.start : item.start + item.num_tokens] for item in items
        )
        tokens = place(np.fromiter(known, np.int64), self.device)
        if self._unread is not None:
            source = sources(items, self._unread)
            if source.max() >= 0:
                tokens = fill_in(tokens, place(source, self.device), self._unread.tokens)
        rows: Tensor | None = None
        if not everywhere:
            ends = itertools.accumulate(item.num_tokens for item in items)
            last = [end - 1 for end, item in zip(ends, items, strict=True) if item.yields_token]
            rows = place(np.array(last, np.int64), self.device)
        logits: Tensor = self.model(tokens, batch, self.pool, rows)
        return logits

    @contextmanager
    def larger_pool(self, num_blocks: int) -> Iterator[None]:
        """Meanwhile computes in a pool of at least so many blocks; what is in its own is kept."""
        own = self.pool, self.num_device_blocks
        if num_blocks > self.num_device_blocks:
            self.pool = self.pool.new_empty(num_blocks, *self.pool.shape[1:])
            self.num_device_blocks = num_blocks
        try:
            yield
        finally:
            self.pool, self.num_device_blocks = own

    def close(self) -> None:
        self.copies.close()


def _pool(setting: str, sizes: tuple[int, ...], **kind: Any) -> Tensor:
    """Not filled: on a CPU a block takes memory only once it is written."""
    try:
        return torch.empty(sizes, **kind)
    except RuntimeError as error:
        gib = math.prod(sizes) * kind["dtype"].itemsize / 1024**3
        raise ValueError(f"there is no memory for a KV pool of {gib:.1f} GiB; lower {setting}") from error
