"""Builds a workload from a dataset, an arrival process and a seed.

Samples, arrivals, token ids and users each have a separate random stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from fgbench.workload.arrivals import POISSON, Arrivals
from fgbench.workload.datasets import Dataset, Sample
from fgbench.workload.workload import Prompt, RequestSpec, Shift, Workload

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

MAX_PROMPTS = 1_000_000
MAX_USERS = 1_000_000
WARMUP_OUTPUT_TOKENS = 16
"""Maximum output tokens of a warm-up request. It fills caches and compiles, so short answers are enough."""
DEFAULT_TOKEN_IDS = (1_000, 30_000)
"""Range of token ids in prompts. The catalog models have their special tokens below it, and at least 32,000
tokens."""


def token_id_range(vocab_size: int | None) -> tuple[int, int]:
    """Return the range [low, high) of token ids in prompts: the default range, if the vocabulary contains it.

    ``vocab_size``: None: not known, assumed to be large enough. Raises ValueError if it is below 16.
    """
    low, high = DEFAULT_TOKEN_IDS
    if vocab_size is None or vocab_size >= high:
        return low, high
    if vocab_size < 16:
        raise ValueError(f"a vocabulary of {vocab_size} tokens is too small for prompts: use another model")
    return vocab_size // 4, vocab_size


def check_counts(*, num_prompts: int, num_warmup: int, seed: int, users: int = 1) -> None:
    """Raise ValueError if one of the numbers is out of range."""
    if not 1 <= num_prompts <= MAX_PROMPTS:
        raise ValueError(f"the number of prompts must be between 1 and {MAX_PROMPTS}, not {num_prompts}")
    if not 0 <= num_warmup <= MAX_PROMPTS:
        raise ValueError(
            f"the number of warm-up prompts must be between 0 and {MAX_PROMPTS}, not {num_warmup}"
        )
    if not 0 <= seed < 2**63:
        raise ValueError(f"the seed must be between 0 and 2^63 - 1, not {seed}")
    if not 1 <= users <= MAX_USERS:
        raise ValueError(f"the number of users must be between 1 and {MAX_USERS}, not {users}")


def build_workload(
    dataset: Dataset,
    *,
    rate: float,
    num_prompts: int,
    seed: int = 0,
    num_warmup: int = 0,
    vocab_size: int | None = None,
    with_prompts: bool = True,
    users: int = 1,
    arrivals: Arrivals = POISSON,
    num_words: int = 0,
    natural_lengths: bool = False,
    think_time: float = 0.0,
) -> Workload:
    """Build a workload.

    The same seed gives the same lengths and texts in the same order, at every rate and with every arrival
    process. Prompts of token ids are the same for every server, but differ between rates and arrival
    processes, so that a prefix cache holds none of them from an earlier load. Texts do not change. Warm-up
    requests use the samples after the measured ones, so the two differ if the dataset is large enough.

    Args:
        rate: Requests per second; ``inf``: all at once.
        vocab_size: Number of tokens in the vocabulary; None: not known.
        with_prompts: False: make no prompts. Lengths and arrivals are the same, but fingerprints differ.
        users: Number of users. Each measured request has a user; user k sends 1/k as many as the first.
        num_words: Number of words of which prompts of given lengths are made, as positions; 0: token ids.
        natural_lengths: Whether the model ends its answers. It changes the fingerprint.
        think_time: Mean seconds between an answer and the next turn of its conversation; exponential.

    Raises:
        ValueError: a number is out of range, or the dataset has no usable sample.
    """
    import numpy as np

    check_counts(num_prompts=num_prompts, num_warmup=num_warmup, seed=seed, users=users)
    streams = np.random.SeedSequence(seed).spawn(6)
    gaps, choice, ids, warmup_ids, senders, thinking = (
        np.random.Generator(np.random.PCG64(s)) for s in streams
    )

    arrivals = arrivals.part(num_prompts, seed)
    low, high = (0, num_words) if num_words else token_id_range(vocab_size)
    shift = Shift(f"{arrivals.label}|{float(rate)}", low, high)

    def prompt(sample: Sample, rng: Generator, index: int | str) -> Prompt:
        if not with_prompts:
            return ()
        if sample.text is not None:
            return sample.text
        begin: tuple[int, ...] = ()
        for name, tokens in sample.shared:
            own = f"{index} {name}" if isinstance(index, str) else name  # a warm-up request shares nothing
            begin += shift.applied(_segment(seed, own, tokens, low, high), own)
        return begin + shift.applied(rng.integers(low, high, sample.prompt_tokens - len(begin)), index)

    users_drawn = _user_names(senders, users, num_prompts)
    in_order = bool(getattr(dataset, "in_order", False))
    skipped = arrivals.first if in_order else 0
    samples = islice(dataset.samples(choice), skipped, None)
    measured = list(islice(samples, num_prompts))
    # Later turns would begin like a measured conversation.
    warmup = list(islice((sample for sample in samples if not sample.turn), num_warmup))
    names = _users_of_conversations(measured, users_drawn)
    times = _arrival_times(arrivals, gaps, measured, rate, in_order)
    thought = [thinking.exponential(think_time) if sample.turn else 0.0 for sample in measured]
    return Workload(
        dataset=dataset.name,
        rate=rate,
        seed=seed,
        requests=tuple(
            RequestSpec(
                index=i,
                scheduled=at,
                prompt=prompt(s, ids, i),
                prompt_tokens=s.prompt_tokens,
                output_tokens=s.output_tokens,
                user=user,
                shared=s.shared,
                turn=s.turn if i else 0,
                conversation=s.conversation,
                think_time=round(thought, 6),
                messages=s.messages,
            )
            for i, (at, s, user, thought) in enumerate(zip(times, measured, names, thought, strict=True))
        ),
        warmup=tuple(
            RequestSpec(
                i,
                0.0,
                prompt(s, warmup_ids, f"warm-up {i}"),
                s.prompt_tokens,
                min(s.output_tokens, WARMUP_OUTPUT_TOKENS),
            )
            for i, s in enumerate(warmup)
        ),
        arrivals=arrivals,
        users=users,
        shift=shift,
        natural_lengths=natural_lengths,
    )


def _users_of_conversations(samples: Sequence[Sample], drawn: Sequence[str]) -> list[str]:
    """Return each request's user: the drawn one, or that of the conversation's first turn."""
    found: list[str] = []
    user_of: dict[str, str] = {}
    for sample, user in zip(samples, drawn, strict=True):
        if not sample.turn:
            user_of[sample.conversation] = user
        found.append(user_of.setdefault(sample.conversation, user) if sample.turn else user)
    return found


def _arrival_times(
    arrivals: Arrivals, rng: Generator, samples: Sequence[Sample], rate: float, in_order: bool
) -> Sequence[float]:
    """Return the time of each sample's arrival; later turns of a conversation have that of its first.

    Conversations arrive by the process, at the rate that gives ``rate`` requests per second. If the samples
    are ``in_order``, as those of a trace, each request has a time of its own.
    """
    begins = [sample.turn == 0 or i == 0 for i, sample in enumerate(samples)]
    if in_order or all(begins):
        return arrivals.times(rng, len(samples), rate)
    of_conversations = arrivals.times(rng, sum(begins), rate * sum(begins) / len(samples))
    return [of_conversations[conversation - 1] for conversation in accumulate(begins)]


def _segment(seed: int, name: str, tokens: int, low: int, high: int) -> NDArray[Any]:
    """Return the token ids of a segment; a longer segment of the same name begins with the same ids."""
    import numpy as np

    digest = int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(digest)).integers(low, high, tokens)


def _user_names(rng: Generator, users: int, num_prompts: int) -> list[str]:
    """Draw each request's user: ``user-1`` .. ``user-N`` with weights 1, 1/2, .. 1/N; empty if N is 1."""
    import numpy as np

    if users == 1:
        return [""] * num_prompts
    weights = 1.0 / np.arange(1, users + 1)
    drawn = rng.choice(users, num_prompts, p=weights / weights.sum())
    return [f"user-{rank + 1}" for rank in drawn.tolist()]
