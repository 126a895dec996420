"""Decode steps as CUDA graphs: one launch for a step instead of hundreds.

This saves time for batches whose kernels take less time than their launches. A graph replays exactly the
captured kernels on the captured addresses. So there is one graph for each of some batch sizes, and a batch is
padded to the next larger size. The inputs of each step are copied to the addresses that the graphs read.
Kernel grids are chosen for the longest possible context; the kernels stop at the real context length.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fgengine.execution.device_tokens import DeviceTokens, fill_in, sources
from fgengine.model.loader import Model
from fgengine.ops.batch import RaggedBatch
from fgengine.plan import PlanItem

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Captures kernel launches as a CUDA graph; returns a callable that replays it."""
Track = Callable[[Sequence[int]], Iterable[int]]
"""Wraps the batch sizes in an iterable that may show progress."""

ALIGNED = 16
"""The number of rows is padded to a multiple of this, so that every array starts at a multiple of 16 bytes,
as 16-byte loads need."""


def batch_sizes(limit: int) -> list[int]:
    """Return the batch sizes to capture: 1, 2, 4, 8, then multiples of 8; the last is ``limit``.

    Small sizes are closer together, because one padded row is a large part of a small step.
    """
    return sorted({size for size in (1, 2, 4, *range(8, limit, 8)) if size < limit} | {limit})


def cuda_capture() -> Capture:
    """Return a ``Capture`` for CUDA. All its graphs share one memory pool, since only one runs at a time."""
    # An object that is freed during a capture may break it: an older graph takes along the cuBLAS workspace
    # of the capture stream, and pinned memory cannot be freed during a capture. So free garbage now.
    gc.collect()
    pool = torch.cuda.graph_pool_handle()

    def capture(launches: Callable[[], None]) -> Callable[[], None]:
        # Run once before the capture, so that first-use compilation is not captured. Use the compute stream:
        # cuBLAS holds a workspace for each stream that it runs on, 32 MiB on an H100.
        launches()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            launches()
        return graph.replay

    return capture


class DecodeInputs:
    """The inputs of a decode batch at fixed device addresses, filled by a single copy.

    Per row, int64: ``tokens``, ``source`` (see ``device_tokens.sources``), ``positions``, ``slots``. Per row,
    int32: ``context_lens`` and the row of ``tables`` [rows, width].
    """

    def __init__(self, max_requests: int, width: int, device: torch.device) -> None:
        """Reserve space for ``max_requests`` requests with block tables of up to ``width`` blocks."""
        self.rows = rows = -(-max_requests // ALIGNED) * ALIGNED
        self.width = width
        self._buffer = torch.zeros(rows * (4 * 8 + 4 + 4 * width), dtype=torch.uint8, device=device)
        wide = self._buffer[: 32 * rows].view(torch.int64).view(4, rows)
        self.tokens, self.source, self.positions, self.slots = wide
        self.context_lens = self._buffer[32 * rows : 36 * rows].view(torch.int32)
        self.tables = self._buffer[36 * rows :].view(torch.int32).view(rows, width)
        self.query_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.device_tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        """[rows] int64: tokens sampled by the last step; valid if any ``source`` is not -1."""

    def fill(
        self,
        items: Sequence[PlanItem],
        size: int,
        block_size: int,
        dummy_block: int,
        device_tokens: DeviceTokens | None,
    ) -> None:
        """Fill the first ``size`` rows: one for each item, then padding.

        A padding row decodes a first token into the dummy block.
        """
        rows, count = self.rows, len(items)
        num_bytes = 36 * rows + size * self.width * 4
        # Each step has its own pinned memory: the copy runs later, after the steps before it.
        host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._buffer.is_cuda)
        array = host.numpy()
        tokens, source, positions, slots = array[: 32 * rows].view(np.int64).reshape(4, rows)
        contexts = array[32 * rows : 36 * rows].view(np.int32)
        tables = array[36 * rows :].view(np.int32).reshape(size, self.width)
        tokens[:], source[:], positions[:], slots[:] = 0, -1, 0, dummy_block * block_size
        contexts[:], tables[:] = 1, 0
        tables[count:, 0] = dummy_block
        for row, (request, start, _, blocks, _) in enumerate(items):
            used = start // block_size + 1
            tables[row, :used] = blocks[:used]
            tokens[row] = request.tokens[start]
            positions[row] = start
        at = positions[:count]
        contexts[:count] = at + 1
        slots[:count] = tables[np.arange(count), at // block_size].astype(np.int64) * block_size
        slots[:count] += at % block_size
        source[:count] = sources(items, device_tokens)
        self._buffer[:num_bytes].copy_(host, non_blocking=True)
        if device_tokens is not None and (source[:count] >= 0).any():
            self.device_tokens[: len(device_tokens.tokens)].copy_(device_tokens.tokens)

    def batch(self, size: int, longest: int) -> RaggedBatch:
        """Return the first ``size`` rows as a batch.

        Only the device has the real context lengths; the host uses ``longest`` (tokens) as an upper bound.
        """
        return RaggedBatch(
            positions=self.positions[:size],
            slots=self.slots[:size],
            block_tables=self.tables[:size],
            query_starts=self.query_starts[: size + 1],
            context_lens=self.context_lens[:size],
            query_lens=(1,) * size,
            contexts=(longest,) * size,
        )


class DecodeGraphs:
    """Computes the logits of a decode batch with the graph of the same or next larger batch size."""

    def __init__(
        self,
        model: Model,
        pool: Tensor,
        *,
        max_requests: int,
        block_size: int,
        max_model_len: int,
        dummy_block: int,
        capture: Capture,
        track: Track = lambda sizes: sizes,
    ) -> None:
        """Capture a graph for each of ``batch_sizes(max_requests)``.

        The largest is captured first, so that the others fit into its memory.

        Args:
            pool: the device pool, in the layout of ``Llama.forward``. The graphs work on this pool only.
            max_requests: the maximum number of requests in a step.
            max_model_len: the maximum context, in tokens.
            dummy_block: the block of the pool that padding rows write to.
        """
        self.pool = pool
        self.max_requests = max_requests
        self._block_size, self._dummy_block = block_size, dummy_block
        self._inputs = DecodeInputs(max_requests, -(-max_model_len // block_size), pool.device)
        self._logits = torch.empty(max_requests, model.shape.vocab_size, dtype=pool.dtype, device=pool.device)
        self._sizes = batch_sizes(max_requests)
        self._replays: dict[int, Callable[[], None]] = {}
        for size in track(self._sizes[::-1]):
            self._fill([], size, None)
            batch = self._inputs.batch(size, max_model_len)

            def launches(size: int = size, batch: RaggedBatch = batch) -> None:
                inputs = self._inputs
                tokens = fill_in(inputs.tokens[:size], inputs.source[:size], inputs.device_tokens)
                self._logits[:size].copy_(model(tokens, batch, pool))

            self._replays[size] = capture(launches)

    def fits(self, items: Sequence[PlanItem], pool: Tensor) -> bool:
        """Whether a graph can run this step: only decodes, not too many of them, and the captured pool."""
        return (
            len(items) <= self.max_requests
            and pool is self.pool
            and all(item.num_tokens == 1 and item.yields_token for item in items)
        )

    def logits(self, items: Sequence[PlanItem], device_tokens: DeviceTokens | None) -> Tensor:
        """Return logits [len(items), vocab_size] in the pool's dtype. The next step overwrites them."""
        size = self._sizes[bisect_left(self._sizes, len(items))]
        self._fill(items, size, device_tokens)
        self._replays[size]()
        return self._logits[: len(items)]

    def _fill(self, items: Sequence[PlanItem], size: int, device_tokens: DeviceTokens | None) -> None:
        self._inputs.fill(items, size, self._block_size, self._dummy_block, device_tokens)
