"""The batch of a step: all input tokens in one array, with the metadata that the operations need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor


def place(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Copy the array to the device. On a GPU, the copy is queued in the current stream without waiting."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """The input tokens of a step: B requests with T new tokens in total.

    The new tokens of request b are rows ``query_starts[b]`` to ``query_starts[b + 1] - 1``. The tensors are
    on the device. The other fields are on the host, so that code that plans over the requests need not wait
    for a GPU. If a CUDA graph replays the batch, ``contexts`` are only upper bounds; ``context_lens`` is
    exact.
    """

    positions: Tensor
    """[T] int64: each token's position in its sequence."""
    slots: Tensor
    """[T] int64: where the token's keys and values are stored, block * block_size + offset in the block."""
    block_tables: Tensor
    """[B, maximum blocks] int32; unused entries are 0."""
    query_starts: Tensor
    """[B + 1] int32: the first row of each request; the last entry is T."""
    context_lens: Tensor
    """[B] int32: tokens that the request's last new token attends to, including itself."""
    query_lens: tuple[int, ...]
    """New tokens of each request."""
    contexts: tuple[int, ...]
    """Context of each request after the step, in tokens."""
    num_decodes: int = field(init=False)
    """Number of requests with one new token at the start of the batch."""
    longest_decode_context: int = field(init=False)
    """Longest context of these requests, in tokens (0: there are none)."""
    longest_query: int = field(init=False)
    """Maximum new tokens of a request after them (0: there are none)."""

    def __post_init__(self) -> None:
        decodes = next((b for b, n in enumerate(self.query_lens) if n != 1), len(self.query_lens))
        put = partial(object.__setattr__, self)
        put("num_decodes", decodes)
        put("longest_decode_context", max(self.contexts[:decodes], default=0))
        put("longest_query", max(self.query_lens[decodes:], default=0))

    @classmethod
    def build(
        cls, items: Sequence[tuple[int, int, Sequence[int]]], block_size: int, device: torch.device
    ) -> RaggedBatch:
        """Build a batch from (start, num_tokens, block table) of each item; num_tokens >= 1.

        Raises:
            ValueError: a block table is too short for its tokens.
        """
        starts = np.fromiter((item[0] for item in items), np.int64, len(items))
        lens = np.fromiter((item[1] for item in items), np.int64, len(items))
        contexts = starts + lens
        needed = -(-contexts // block_size)
        tables = np.zeros((len(items), int(needed.max(initial=0))), np.int32)
        for row, (_, _, blocks) in enumerate(items):
            count = int(needed[row])
            if len(blocks) < count:
                raise ValueError(f"a block table of {len(blocks)} is too short for {contexts[row]} tokens")
            tables[row, :count] = blocks[:count]
        query_starts = np.zeros(len(items) + 1, np.int64)
        np.cumsum(lens, out=query_starts[1:])
        request = np.repeat(np.arange(len(items)), lens)
        positions = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - starts, lens)
        slots = (
            tables[request, positions // block_size].astype(np.int64) * block_size + positions % block_size
        )

        return cls(
            positions=place(positions, device),
            slots=place(slots, device),
            block_tables=place(tables, device),
            query_starts=place(query_starts.astype(np.int32), device),
            context_lens=place(contexts.astype(np.int32), device),
            query_lens=tuple(lens.tolist()),
            contexts=tuple(contexts.tolist()),
        )
