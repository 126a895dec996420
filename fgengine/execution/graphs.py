"""Decode steps as CUDA graphs: one launch instead of hundreds, for batches where launching would take longer.

A graph repeats the very kernels it was captured with, on the very places they read then. So there is a graph
for each of some batch sizes, smaller batches are padded to the next one, and each step's inputs are copied to
where the graphs look for them. Grids were chosen for the longest context; the kernels stop at the real one.
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
"""Makes of some launches what repeats them."""
Track = Callable[[Sequence[int]], Iterable[int]]
"""Goes over the batch sizes, and may show how far it has come."""

ALIGNED = 16
"""Rows are laid out in multiples of this, so that every array begins at a multiple of 16 bytes, as wide
loads want it."""


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, 8, then multiples of 8; the last is ``most``. At 1 to 8 a padded row is much of the step."""
    return sorted({size for size in (1, 2, 4, *range(8, most, 8)) if size < most} | {most})


def cuda_capture() -> Capture:
    """All its graphs share one pool of memory: only one of them runs at a time."""
    # What ends during a capture may undo it: an older graph takes along the cuBLAS workspace of the stream
    # that all are captured in, and pinned memory cannot be let go then.
    gc.collect()
    pool = torch.cuda.graph_pool_handle()

    def capture(launches: Callable[[], None]) -> Callable[[], None]:
        # Once before: what is compiled at first use does not belong in the graph. In the stream that computes
        # anyway, as cuBLAS keeps a workspace for every other that it is used in, 32 MiB on an H100.
        launches()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            launches()
        return graph.replay

    return capture


class DecodeInputs:
    """A batch of decodes in fixed places on the device, filled by a single copy."""

    def __init__(self, most: int, width: int, device: torch.device) -> None:
        """For ``most`` requests with block tables of up to ``width`` blocks."""
        self.rows = rows = -(-most // ALIGNED) * ALIGNED
        self.width = width
        self._buffer = torch.zeros(rows * (4 * 8 + 4 + 4 * width), dtype=torch.uint8, device=device)
        wide = self._buffer[: 32 * rows].view(torch.int64).view(4, rows)
        self.tokens, self.source, self.positions, self.slots = wide
        self.context_lens = self._buffer[32 * rows : 36 * rows].view(torch.int32)
        self.tables = self._buffer[36 * rows :].view(torch.int32).view(rows, width)
        self.query_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.device_tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        """What the last step sampled, if that is where tokens are to be taken from."""

    def fill(
        self,
        items: Sequence[PlanItem],
        size: int,
        block_size: int,
        dummy_block: int,
        device_tokens: DeviceTokens | None,
    ) -> None:
        """Rows behind the items', up to ``size``, decode a first token into the dummy block."""
        rows, count = self.rows, len(items)
        num_bytes = 36 * rows + size * self.width * 4
        # Pinned memory of its own for each step: the copy runs later, when the steps before it have.
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
        """The first ``size`` rows. Only the device knows their contexts; the host a bound, ``longest``."""
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
    """Logits of a batch of decodes, by the graph of the next larger batch size."""

    def __init__(
        self,
        model: Model,
        pool: Tensor,
        *,
        most: int,
        block_size: int,
        max_model_len: int,
        dummy_block: int,
        capture: Capture,
        track: Track = lambda sizes: sizes,
    ) -> None:
        """Captures a graph for each of ``batch_sizes(most)``, the largest first: the others fit in its room.

        Args:
            pool: as the model takes it; the graphs know no other.
            most: no step has more requests than this.
            dummy_block: of the pool; what padding writes goes there.
        """
        self.pool = pool
        self.most = most
        self._block_size, self._dummy_block = block_size, dummy_block
        self._inputs = DecodeInputs(most, -(-max_model_len // block_size), pool.device)
        self._logits = torch.empty(most, model.shape.vocab_size, dtype=pool.dtype, device=pool.device)
        self._sizes = batch_sizes(most)
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
        """Whether this is a step the graphs know: only decodes, no more than the largest, in their pool."""
        return (
            len(items) <= self.most
            and pool is self.pool
            and all(item.num_tokens == 1 and item.yields_token for item in items)
        )

    def logits(self, items: Sequence[PlanItem], device_tokens: DeviceTokens | None) -> Tensor:
        """[len(items), vocab_size]: overwritten by the next step."""
        size = self._sizes[bisect_left(self._sizes, len(items))]
        self._fill(items, size, device_tokens)
        self._replays[size]()
        return self._logits[: len(items)]

    def _fill(self, items: Sequence[PlanItem], size: int, device_tokens: DeviceTokens | None) -> None:
        self._inputs.fill(items, size, self._block_size, self._dummy_block, device_tokens)
