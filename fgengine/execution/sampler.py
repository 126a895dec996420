"""Samples tokens from logits. A draw depends only on the request's seed, output position and logits.

So a request gets the same tokens alone, in any batch, and after it was evicted and recomputed. The same holds
for requests that change their logits (``adjusting``): only their rows are copied and changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgengine.execution.adjusting import adjust
from fgengine.execution.device_tokens import DeviceTokens
from fgengine.ops.batch import place
from fgengine.ops.reference import TorchOps
from fgengine.request import Request

Uints = np.ndarray[Any, np.dtype[np.uint64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def seed_of(request: Request, engine_seed: int) -> int:
    """Return the request's own seed, or one derived from its id and the engine's seed; below 2^64."""
    seed = request.params.seed
    return _seed_of_id(request.id, engine_seed) if seed is None else seed % 2**64


@lru_cache(maxsize=4096)
def _seed_of_id(id: str, engine_seed: int) -> int:
    digest = hashlib.blake2b(f"{engine_seed}:{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> Floats:
    """Return [R] float64: for each (seed, output position) a number in [0, 1).

    The generator is SplitMix64, because its n-th number can be computed without the numbers before it. The
    seed is mixed once before it becomes the start state: otherwise neighbouring seeds would give the same
    sequence, shifted by some positions.
    """
    state = _mixed(np.array(seeds, np.uint64)) + np.array(positions, np.uint64) * GOLDEN
    return (_mixed(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: Uints) -> Uints:
    """Apply one step of SplitMix64 (Steele, Lea and Flood 2014; constants of Stafford's variant 13)."""
    state = state + GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def sample(
    ops: TorchOps,
    logits: Tensor,
    requests: Sequence[Request],
    positions: Sequence[int],
    engine_seed: int = 0,
    *,
    eos_token_ids: Collection[int] = (),
    unread: DeviceTokens | None = None,
) -> Tensor:
    """Sample the next token of each request. Never waits for the GPU.

    Args:
        logits: [R, vocab_size], not changed; row r belongs to ``requests[r]``.
        positions: the index of the output token of each request, from 0.
        eos_token_ids: tokens that a request with ``min_tokens`` must not choose at first.
        unread: the tokens of the last step, if the host has not read them yet.

    Returns:
        [R] int64, on the logits' device.
    """
    changed = [
        row
        for row, request in enumerate(requests)
        if request.adjustment is not None and positions[row] < request.adjustment.until
    ]
    if not changed:
        return _draw(ops, logits, requests, positions, engine_seed)
    tokens = torch.empty(len(requests), dtype=torch.int64, device=logits.device)
    plain = sorted({*range(len(requests))}.difference(changed))
    for rows in (plain, changed):
        if not rows:
            continue
        at = place(np.array(rows), logits.device)
        part = logits.index_select(0, at)
        theirs, here = [requests[row] for row in rows], [positions[row] for row in rows]
        if rows is changed:
            if not all(one.adjustment.only_forbids for one in theirs if one.adjustment is not None):
                part = part.float()
            adjust(ops, part, theirs, here, eos_token_ids, unread)
        tokens[at] = _draw(ops, part, theirs, here, engine_seed)
    return tokens


def _draw(
    ops: TorchOps, logits: Tensor, requests: Sequence[Request], positions: Sequence[int], engine_seed: int
) -> Tensor:
    params = [request.params for request in requests]
    if all(one.greedy for one in params):
        return logits.max(-1).indices  # same as argmax, but four times as fast on a CPU in bfloat16
    rows = np.empty((len(params), 4))
    rows[:, :3] = [(one.temperature, one.top_k, one.top_p) for one in params]
    rows[:, 3] = uniforms([seed_of(request, engine_seed) for request in requests], positions)
    return ops.sample(logits, place(rows, logits.device))
