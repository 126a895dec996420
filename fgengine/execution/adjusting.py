"""Changes logits before sampling: biases, penalties, forbidden tokens, grammars, and min_p.

The order is vLLM's: biases, the repetition penalty, the other penalties, min_tokens, grammars;
then, after the temperature, min_p. Only the requests' tokens decide, so the result does not depend on the
batch. Nothing here waits for the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from fgengine.adjustment import Adjustment
from fgengine.execution.device_tokens import DeviceTokens
from fgengine.ops.batch import place
from fgengine.ops.reference import TorchOps
from fgengine.request import Request


def adjust(
    ops: TorchOps,
    logits: Tensor,
    requests: Sequence[Request],
    positions: Sequence[int],
    eos_token_ids: Collection[int],
    unread: DeviceTokens | None = None,
) -> None:
    """Change the logits in place to those from which the next token of each request is sampled.

    Args:
        logits: [R, vocab_size], float32 unless all adjustments only forbid tokens; row r belongs to
            ``requests[r]``, which has an adjustment.
        positions: the index of the output token of each request, from 0.
        unread: the tokens of the last step, if the host has not read them yet.
    """
    adjustments = [one for request in requests if (one := request.adjustment) is not None]
    _add_biases(logits, adjustments)
    if any(one.counts is not None for one in adjustments):
        _penalize(logits, requests, positions, unread)
    _forbid_the_end(logits, adjustments, positions, eos_token_ids)
    if any(one.matcher is not None for one in adjustments):
        _follow_grammars(ops, logits, requests, positions)
    _leave_out_improbable(logits, adjustments)


def _add_biases(logits: Tensor, adjustments: Sequence[Adjustment]) -> None:
    lengths = [len(one.biases) for one in adjustments]
    if any(lengths):
        rows = np.repeat(np.arange(len(lengths)), lengths)
        tokens = np.concatenate([one.bias_tokens for one in adjustments])
        at = tuple(place(np.stack([rows, tokens]), logits.device))
        biases = np.concatenate([one.biases for one in adjustments]).astype(np.float32)
        logits[at] = logits[at] + place(biases, logits.device)


def _penalize(
    logits: Tensor, requests: Sequence[Request], positions: Sequence[int], unread: DeviceTokens | None
) -> None:
    """Apply the three penalties in place."""
    places = unread.places if unread is not None else {}
    rows, tokens, counts = [], [], []
    unread_rows, sources = [], []
    for at, (request, position) in enumerate(zip(requests, positions, strict=True)):
        if request.adjustment is None or (found := request.adjustment.counts) is None:
            continue
        known = request.prompt_len + position
        source, newest = places.get(request, (-1, -1))
        if newest == known - 1:  # only the device has this token
            unread_rows.append(at)
            sources.append(source)
            known -= 1
        found.count(request.tokens, known)
        rows.append(np.full(len(found.tokens), at))
        tokens.append(np.array(found.tokens))
        counts.append(np.array(found.counts))
    entries = np.stack([np.concatenate(columns) for columns in (rows, tokens, counts)])
    row, token, count = place(entries, logits.device)
    if unread is not None and sources:
        ahead, source = place(np.array([unread_rows, sources]), logits.device)
        row, token, count = _with_newest(row, token, count, ahead, unread.tokens[source], len(requests))
    penalties = [
        (one.repetition_penalty, one.frequency_penalty, one.presence_penalty)
        for one in (request.params for request in requests)
    ]
    repetition, frequency, presence = place(np.array(penalties, np.float32), logits.device)[row].T
    values = logits[row, token]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values - frequency * count - presence * (count > 0)
    logits[row, token] = values  # a token that is listed twice in a row has the same value both times


def _with_newest(
    row: Tensor, token: Tensor, count: Tensor, at: Tensor, newest: Tensor, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries with the newest token of some rows, which only the device has.

    Args:
        row, token, count: [E] int64: how often each row's tokens were generated.
        at, newest: [U] int64: the rows and their newest tokens.
    """
    row, token = torch.cat((row, at)), torch.cat((token, newest))
    count = torch.cat((count, torch.ones_like(newest)))
    of_row = torch.full((num_rows,), -1, dtype=torch.int64, device=row.device)
    of_row[at] = newest
    # If the token was generated before, it is listed twice: both entries get the sum of their counts.
    same = token == of_row[row]
    total = torch.zeros_like(of_row).index_add_(0, row, torch.where(same, count, 0))
    return row, token, torch.where(same, total[row], count)


def _forbid_the_end(
    logits: Tensor,
    adjustments: Sequence[Adjustment],
    positions: Sequence[int],
    eos_token_ids: Collection[int],
) -> None:
    """Forbid EOS and stop tokens in rows with fewer than ``min_tokens`` tokens, in place."""
    vocab_size = logits.shape[1]
    forbidden = [
        (row, token)
        for row, (one, position) in enumerate(zip(adjustments, positions, strict=True))
        if position < one.params.min_tokens
        for token in chain(eos_token_ids, one.params.stop_token_ids)
        if 0 <= token < vocab_size
    ]
    if forbidden:
        logits[tuple(place(np.array(forbidden).T.copy(), logits.device))] = -math.inf


def _follow_grammars(
    ops: TorchOps, logits: Tensor, requests: Sequence[Request], positions: Sequence[int]
) -> None:
    """Forbid what the grammars of some rows do not allow, in place. The host must know all their tokens."""
    rows, masks = [], []
    for row, (request, position) in enumerate(zip(requests, positions, strict=True)):
        if request.adjustment is not None and (matcher := request.adjustment.matcher) is not None:
            rows.append(row)
            masks.append(matcher.allowed(request.tokens, request.prompt_len + position))
    packed = np.frombuffer(bytearray().join(masks), np.uint8).reshape(len(rows), -1)
    ops.forbid(logits, place(np.array(rows), logits.device), place(packed, logits.device))


def _leave_out_improbable(logits: Tensor, adjustments: Sequence[Adjustment]) -> None:
    """Apply ``min_p`` in place: p < min_p * p_max means logit < logit_max + temperature * log(min_p)."""
    margins = [
        one.params.temperature * math.log(one.params.min_p) if one.params.min_p else -math.inf
        for one in adjustments
    ]
    if any(margin > -math.inf for margin in margins):
        margin = place(np.array(margins, np.float32), logits.device).unsqueeze(1)
        logits.masked_fill_(logits < logits.amax(-1, keepdim=True) + margin, -math.inf)
