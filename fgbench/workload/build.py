"""One seed, one workload: dataset, arrivals and token ids each from a random stream of its own."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from fgbench.workload.arrivals import POISSON, Arrivals
from fgbench.workload.datasets import Dataset, Sample
from fgbench.workload.workload import Prompt, RequestSpec, Workload

if TYPE_CHECKING:
    from numpy.random import Generator

MAX_PROMPTS = 1_000_000
MAX_USERS = 1_000_000
WARMUP_OUTPUT_TOKENS = 16
"""Warm-up fills caches and compiles; it need not generate long answers."""
DEFAULT_TOKEN_IDS = (1_000, 30_000)
"""Above every catalog model's special tokens, below the smallest vocabulary among them (32,000)."""


def token_id_range(vocab_size: int | None) -> tuple[int, int]:
    """[low, high) of ids to make prompts of; the usual range wherever the vocabulary holds it.

    None: unknown, taken to be large enough. Raises ValueError for a vocabulary of fewer than 16.
    """
    low, high = DEFAULT_TOKEN_IDS
    if vocab_size is None or vocab_size >= high:
        return low, high
    if vocab_size < 16:
        raise ValueError(f"a vocabulary of {vocab_size} tokens is too small to make prompts of")
    return vocab_size // 4, vocab_size


def check_counts(*, num_prompts: int, num_warmup: int, seed: int, users: int = 1) -> None:
    """Raises ValueError, naming the number, for one that no workload can have."""
    if not 1 <= num_prompts <= MAX_PROMPTS:
        raise ValueError(f"the number of prompts must be between 1 and {MAX_PROMPTS}, not {num_prompts}")
    if not 0 <= num_warmup <= MAX_PROMPTS:
        raise ValueError(f"warm-up prompts must number between 0 and {MAX_PROMPTS}, not {num_warmup}")
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
) -> Workload:
    """The same seed gives the same prompts and lengths in the same order at every rate, with all arrivals and
    for every server.

    A smaller ``num_prompts`` gives the first of a larger one's requests (but see ``Ramp``). Warm-up takes the
    samples after the measured ones, so the two differ while the dataset has that many. Without prompts
    lengths and arrivals are the same, but not the fingerprints, which are of what is sent. With several users
    each measured request is one's, the k-th user sending 1/k as many as the first.

    Raises:
        ValueError: for a number out of range, or a dataset that yields nothing usable.
    """
    import numpy as np

    check_counts(num_prompts=num_prompts, num_warmup=num_warmup, seed=seed, users=users)
    streams = np.random.SeedSequence(seed).spawn(5)
    gaps, choice, ids, warmup_ids, senders = (np.random.Generator(np.random.PCG64(s)) for s in streams)

    times = arrivals.times(gaps, num_prompts, rate)
    low, high = token_id_range(vocab_size)
    prompt = _prompt if with_prompts else _no_prompt
    names = _user_names(senders, users, num_prompts)
    samples = list(islice(dataset.samples(choice), num_prompts + num_warmup))
    measured, warm = samples[:num_prompts], samples[num_prompts:]
    return Workload(
        dataset=dataset.name,
        rate=rate,
        seed=seed,
        requests=tuple(
            RequestSpec(i, at, prompt(s, ids, low, high), s.prompt_tokens, s.output_tokens, user)
            for i, (at, s, user) in enumerate(zip(times, measured, names, strict=True))
        ),
        warmup=tuple(
            RequestSpec(
                i,
                0.0,
                prompt(s, warmup_ids, low, high),
                s.prompt_tokens,
                min(s.output_tokens, WARMUP_OUTPUT_TOKENS),
            )
            for i, s in enumerate(warm)
        ),
        arrivals=arrivals,
        users=users,
    )


def _user_names(rng: Generator, users: int, num_prompts: int) -> list[str]:
    """Whose each request is: ``user-1`` .. ``user-N`` with weights 1, 1/2, .. 1/N; nobody's where N is 1."""
    import numpy as np

    if users == 1:
        return [""] * num_prompts
    weights = 1.0 / np.arange(1, users + 1)
    drawn = rng.choice(users, num_prompts, p=weights / weights.sum())
    return [f"user-{rank + 1}" for rank in drawn.tolist()]


def _prompt(sample: Sample, rng: Generator, low: int, high: int) -> Prompt:
    if sample.text is not None:
        return sample.text
    ids: list[int] = rng.integers(low, high, sample.prompt_tokens).tolist()
    return tuple(ids)


def _no_prompt(sample: Sample, rng: Generator, low: int, high: int) -> Prompt:
    return ()
