"""Executes a StepPlan on a device: computes logits and samples tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgengine.execution.copying import copy_engine
from fgengine.execution.device import device_name
from fgengine.execution.device_tokens import DeviceTokens, fill_in, sources
from fgengine.execution.graphs import Capture, DecodeGraphs, Track, cuda_capture
from fgengine.execution.host_memory import host_memory
from fgengine.execution.pinned import pinned_empty
from fgengine.execution.prompt_passes import Pass, divide, pieces_of, scores_of
from fgengine.execution.sampler import sample
from fgengine.execution.scoring import Scores, score
from fgengine.execution.threads import Threads
from fgengine.execution.timing import timer_on, to_host
from fgengine.kv import sizing
from fgengine.kv.transfer import CopyEngine
from fgengine.model.loader import Model
from fgengine.ops.batch import RaggedBatch, place
from fgengine.ops.cpu.program import record
from fgengine.plan import PlanItem, StepPlan, StepResult
from fgengine.units import size

SHARE_FOR_PROFILING = 0.9
"""The share of a CPU's free memory that a profile may use while it is measured."""


class TorchRunner:
    """A model, its device pool and host pool of KV blocks, and the copy engine between them.

    ``pool`` is [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim] in the model's dtype; index 0
    of the third axis are keys, index 1 are values. ``host_pool`` has the same layout.
    """

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
        """Create the pools on the device and in the dtype of the model's embedding.

        Args:
            block_size: tokens of a KV block.
            max_model_len: maximum tokens of a request.
            seed: the engine's seed, for requests without their own seed.

        Raises:
            ValueError: there is not enough memory for a pool.
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
        """The pool's last block, which no request ever gets. Padding rows of a batch write to it."""
        self.pool = _pool(
            (num_device_blocks + sizing.DUMMY_BLOCKS, *block),
            self.dtype,
            self.device,
            "lower num_device_blocks",
        )
        self.host_pool = _host_pool((num_host_blocks, *block), self.dtype, pinned=self.device.type == "cuda")
        self.copies = copy_engine(self.pool[:num_device_blocks], self.host_pool)
        self._device_tokens: DeviceTokens | None = None
        """Tokens sampled by the last launched step, until its result is collected."""
        self.graphs: DecodeGraphs | None = None
        self.program = record(model, self.pool)
        self._threads = Threads() if self.device.type == "cpu" else None
        self.num_threads = self._threads.max_threads if self._threads is not None else torch.get_num_threads()

    @torch.inference_mode()
    def capture_graphs(
        self, max_requests: int, *, capture: Capture | None = None, track: Track = lambda sizes: sizes
    ) -> None:
        """Capture CUDA graphs. Afterwards, batches of up to ``max_requests`` decodes run as graphs.

        Args:
            max_requests: the maximum number of requests in a step.
            capture, track: see ``DecodeGraphs``; by default CUDA's capture, and no progress.
        """
        self.graphs = DecodeGraphs(
            self.model,
            self.pool,
            max_requests=max_requests,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            dummy_block=self.dummy_block,
            capture=capture or cuda_capture(),
            track=track,
        )

    @property
    def max_decodes(self) -> int:
        """Maximum number of decodes in a batch that still run as a graph; unlimited without graphs."""
        return self.graphs.max_requests if self.graphs is not None else 2**31

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan's items in one pass. The seconds include the copy of the tokens to the host."""
        return self.launch(plan)()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Launch a step; return a function that waits for its end and returns its result.

        On a GPU, the step is queued in the stream after the steps launched before. If its input token is
        sampled by the step before it, the token is read on the device.
        """
        if self._threads is not None:
            self._threads.adapt()
        timer = timer_on(self.device)
        passes: Sequence[Pass] = ()
        rest = plan.items
        if any(item.request.prompt_logprobs is not None for item in rest):
            passes, rest = divide(rest)
        scored = [(one, self._score(one)) for one in passes]
        items = sorted(rest, key=lambda item: item.num_tokens > 1)  # decodes first: see RaggedBatch
        ending = [item for item in items if item.yields_token]
        asked = [row for row, item in enumerate(ending) if item.request.params.logprobs]
        tokens = logits = torch.empty(0)
        scores: Scores | None = None
        if items:
            if self.graphs is not None and self.graphs.fits(items, self.pool):
                logits = self.graphs.logits(items, self._device_tokens)
            else:
                logits = self._logits(items, _last_rows(items))
        unread, self._device_tokens = self._device_tokens, None
        if ending:
            positions = [item.start + item.num_tokens - item.request.prompt_len for item in ending]
            yielding = [item.request for item in ending]
            chosen = sample(
                self.model.ops,
                logits,
                yielding,
                positions,
                self.seed,
                eos_token_ids=self.shape.eos_token_ids,
                unread=unread,
            )
            places = {item.request: (row, item.start + item.num_tokens) for row, item in enumerate(ending)}
            self._device_tokens = DeviceTokens(chosen, places)
            tokens = to_host(chosen)
            if asked:
                rows = place(np.array(asked), self.device)
                num_top = max(yielding[row].params.top_logprobs for row in asked)
                scores = score(logits[rows], chosen[rows], num_top).to_host()
        timer.stop()
        device_tokens = self._device_tokens

        def collect() -> StepResult:
            seconds = timer.wait()
            if self._device_tokens is device_tokens:
                self._device_tokens = None  # from now on, the requests hold these tokens
            ids = [item.request.id for item in ending]
            found = StepResult(
                plan.step,
                seconds,
                dict(zip(ids, tokens.tolist(), strict=True)),
                prompt_logprobs=pieces_of(scored),
            )
            if scores is not None:
                found.logprobs.update(zip([ids[row] for row in asked], scores.logprobs.tolist(), strict=True))
                for at, row in enumerate(asked):
                    if num_top := ending[row].request.params.top_logprobs:
                        found.top_logprobs[ids[row]] = scores.top(at, num_top)
            return found

        return collect

    def _score(self, one: Pass) -> Scores:
        """Compute a pass of prompts; return the scores of their tokens, being copied to the host."""
        logits = self._logits(one.items, np.array(one.rows))
        return scores_of(logits, place(np.array(one.targets), self.device), one.num_top).to_host()

    @torch.inference_mode()
    def logits(self, plan: StepPlan, everywhere: bool = False) -> Tensor:
        """Return logits [R, vocab_size] in the model's dtype.

        There is one row for each item that yields a token, or for each input token if ``everywhere``.
        """
        return self._logits(plan.items, None if everywhere else _last_rows(plan.items))

    def _logits(self, items: Sequence[PlanItem], wanted: NDArray[np.int64] | None) -> Tensor:
        """Return the logits of the ``wanted`` input tokens [R]; None: of all."""
        batch = RaggedBatch.build(
            [(item.start, item.num_tokens, item.blocks) for item in items], self.block_size, self.device
        )
        known = itertools.chain.from_iterable(
            item.request.tokens[item.start : item.start + item.num_tokens] for item in items
        )
        tokens = place(np.fromiter(known, np.int64), self.device)
        if self._device_tokens is not None:
            source = sources(items, self._device_tokens)
            if source.max() >= 0:
                tokens = fill_in(tokens, place(source, self.device), self._device_tokens.tokens)
        rows = None if wanted is None else place(wanted, self.device)
        if self.program is not None and rows is not None:
            return self.program.logits(tokens, batch, self.pool, rows)
        logits: Tensor = self.model(tokens, batch, self.pool, rows)
        return logits

    @property
    def max_blocks(self) -> int:
        """Maximum blocks of ``larger_pool``: as free memory allows on a CPU; the own pool's size on a GPU."""
        if self.device.type != "cpu":
            return self.num_device_blocks
        free = int(host_memory().free * SHARE_FOR_PROFILING)
        return max(self.num_device_blocks, free // self.block_bytes - sizing.DUMMY_BLOCKS)

    @contextmanager
    def trial_copies(self, num_blocks: int) -> Iterator[CopyEngine]:
        """Provide a copy engine between the device pool and a temporary host pool of ``num_blocks``.

        So a measurement with it does not depend on the engine's own host pool. Raises ValueError if there is
        not enough memory.
        """
        pool = _host_pool((num_blocks, *self.pool.shape[1:]), self.dtype, pinned=self.device.type == "cuda")
        copies = copy_engine(self.pool[: self.num_device_blocks], pool)
        try:
            yield copies
        finally:
            copies.close()

    @contextmanager
    def larger_pool(self, num_blocks: int) -> Iterator[None]:
        """Use a temporary pool of at least ``num_blocks`` blocks. The content of the own pool is preserved.

        Raises ValueError if there is not enough memory.
        """
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
        """Wait for the copies in flight and end the copy engine."""
        self.copies.close()


def _last_rows(items: Sequence[PlanItem]) -> NDArray[np.int64]:
    """Return the input tokens that are the last ones of items that yield a token."""
    ends = itertools.accumulate(item.num_tokens for item in items)
    return np.array([end - 1 for end, item in zip(ends, items, strict=True) if item.yields_token], np.int64)


def _pool(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device, remedy: str) -> Tensor:
    """Allocate a pool without filling it: on a CPU, a block uses memory only after it is written."""
    try:
        return torch.empty(sizes, dtype=dtype, device=device)
    except RuntimeError as error:
        wanted = size(math.prod(sizes) * dtype.itemsize)
        raise ValueError(f"there is no memory for a KV pool of {wanted}; {remedy}") from error


def _host_pool(sizes: tuple[int, ...], dtype: torch.dtype, *, pinned: bool) -> Tensor:
    if not pinned:
        return _pool(sizes, dtype, torch.device("cpu"), "lower swap_space")
    try:
        return pinned_empty(sizes, dtype)
    except ValueError as error:
        raise ValueError(f"there is no host memory for offloaded KV: {error}; lower swap_space") from error
