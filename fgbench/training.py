"""Teaching the output-length predictor from conversations, and measuring what it has learned."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, Literal

from fgbench.workload.texts import TextPair, length_ok
from fgengine.scheduling.learned import Learned

EPOCHS = 4
HELD_OUT = 0.2
"""Share of the conversations that an evaluation keeps from the training."""
MAX_PAIRS_COMPARED = 200_000
SPLIT_SEED = 0

Encoder = Callable[[Sequence[str]], list[list[int]]]
"""Texts -> token ids of each."""
Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""


@dataclass(frozen=True, slots=True)
class Example:
    prompt: list[int]
    """Token ids."""
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Quality:
    """How well the lengths of answers that were not learned from are predicted."""

    trained_on: int
    """Answers."""
    judged_on: int
    spearman: float
    """Rank correlation of predicted and true log length."""
    pairwise_order: float
    """Share of pairs of answers whose order of length is predicted right; 0.5 is chance."""
    median_factor: float
    """The prediction is off by less than this factor half of the time."""
    prediction_seconds: float
    """Median time of one prediction."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def conversation_of(pair: TextPair) -> str:
    """ShareGPT cuts long conversations into records ``<conversation>_<position>``."""
    return pair.id.rpartition("_")[0] or pair.id or pair.prompt


HoldOut = Literal["conversations", "texts"]


def split(
    pairs: Iterable[TextPair], num_train: int, by: HoldOut = "conversations"
) -> tuple[list[list[TextPair]], list[TextPair]]:
    """(records to learn from, each with all its answers; first answers to be judged by).

    By "conversations" these are held out whole; by "texts" only the record is, and other records of the same
    conversation may be learned from. No prompt that is held out is learned from either way. The draw is by
    a hash; a smaller ``num_train`` gives the first of a larger one's.
    """

    def draw(record: Sequence[TextPair]) -> float:
        return _draw(conversation_of(record[0]) if by == "conversations" else record[0].prompt)

    records = [list(group) for _, group in groupby(pairs, key=lambda pair: pair.id)]
    records.sort(key=draw)
    held_out = [record[0] for record in records if draw(record) < HELD_OUT]
    known = {pair.prompt for pair in held_out}
    rest = records[len(held_out) :]
    train = [[pair for pair in record if pair.prompt not in known] for record in rest]
    return [record for record in train if record][:num_train], held_out


def without(pairs: Iterable[TextPair], others: Iterable[TextPair]) -> list[TextPair]:
    """Those whose conversation and prompt are in none of ``others``."""
    conversations, prompts = set(), set()
    for other in others:
        conversations.add(conversation_of(other))
        prompts.add(other.prompt)
    return [p for p in pairs if conversation_of(p) not in conversations and p.prompt not in prompts]


def encode(pairs: Sequence[TextPair], encoder: Encoder, progress: Progress) -> list[Example]:
    """Those of a length that a workload would send, in the given order."""
    examples = []
    for start in range(0, len(pairs), 256):
        batch = pairs[start : start + 256]
        prompts = encoder([pair.prompt for pair in batch])
        completions = encoder([pair.completion for pair in batch])
        for prompt, completion in zip(prompts, completions, strict=True):
            if length_ok(len(prompt), len(completion)):
                examples.append(Example(prompt, len(completion)))
        progress(min(start + 256, len(pairs)), len(pairs))
    return examples


def train(predictor: Learned, examples: Sequence[Example], progress: Progress, epochs: int = EPOCHS) -> None:
    """Goes through the examples ``epochs`` times, in an order drawn by a fixed seed."""
    from numpy.random import default_rng

    order = default_rng(SPLIT_SEED).permutation(len(examples)).tolist()
    for epoch in range(epochs):
        for done, index in enumerate(order):
            predictor.learn_length(examples[index].prompt, examples[index].output_tokens)
            if done % 256 == 0:
                progress(epoch * len(order) + done, epochs * len(order))
    predictor.flush()
    progress(epochs * len(order), epochs * len(order))


def judge(predictor: Learned, examples: Sequence[Example], trained_on: int) -> Quality:
    """Raises ValueError for fewer than two examples."""
    import numpy as np
    from scipy.stats import spearmanr

    if len(examples) < 2:
        raise ValueError("fewer than two answers are held out: there is nothing to judge by")
    seconds, predicted = [], []
    for example in examples:
        began = time.perf_counter()
        predicted.append(predictor.predict_length(example.prompt).median)
        seconds.append(time.perf_counter() - began)
    guess, truth = np.log(predicted), np.log([float(e.output_tokens) for e in examples])
    rng = np.random.default_rng(SPLIT_SEED)
    left, right = rng.integers(0, len(truth), (2, MAX_PAIRS_COMPARED))
    differ = truth[left] != truth[right]
    same_order = (guess[left] < guess[right]) == (truth[left] < truth[right])
    return Quality(
        trained_on=trained_on,
        judged_on=len(examples),
        spearman=float(spearmanr(guess, truth).statistic),
        pairwise_order=float(same_order[differ].mean()),
        median_factor=float(np.exp(np.median(np.abs(guess - truth)))),
        prediction_seconds=median(seconds),
    )


def encoder_of(folder: Path) -> Encoder:
    """By the tokenizer.json in a model's folder, without special tokens. Raises ValueError without one."""
    from fgengine.text import open_tokenizer

    tokenizer = open_tokenizer(folder)

    def encoder(texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return encoder


def _draw(text: str) -> float:
    """Between 0 and 1, the same for the same text."""
    digest = hashlib.sha256(f"{SPLIT_SEED} {text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
