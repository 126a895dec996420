"""A step's items laid out end to end: what the operations know besides the tensors they compute on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor


def place(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """On the device; a GPU gets it in its turn, behind what it is computing, and nobody waits for that."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """B requests with T new tokens in all; request b's are rows ``query_starts[b] .. query_starts[b + 1]``.

    The first two stand on the device in int64, as torch indexes with; the next three in int32. The others
    are what the host knows anyway, so that code that plans over the requests need not ask a GPU. In a batch
    that a CUDA graph runs again, the host's ``contexts`` are bounds and the device's ``context_lens`` hold.
    """

    positions: Tensor
    """[T]: each token's place in its sequence."""
    slots: Tensor
    """[T]: where its keys and values go, block * block_size + place in the block."""
    block_tables: Tensor
    """[B, most blocks]; unused entries are 0."""
    query_starts: Tensor
    """[B + 1]."""
    context_lens: Tensor
    """[B]: tokens attended to by the last new token, itself included."""
    query_lens: tuple[int, ...]
    contexts: tuple[int, ...]
    num_decodes: int = field(init=False)
    """How many requests in front have one new token."""
    longest_decode_context: int = field(init=False)
    """The longest context of those in front (0: there are none)."""
    longest_query: int = field(init=False)
    """The most new tokens of a request behind them (0: there are none)."""

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
        """From (start, num_tokens, block table) of each item; num_tokens >= 1.

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
