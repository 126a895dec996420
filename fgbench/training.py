"""Trains the output-length predictor on conversations, and measures its quality."""

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
"""Share of the conversations that an evaluation does not train on."""
MAX_PAIRS_COMPARED = 200_000
SPLIT_SEED = 0

Encoder = Callable[[Sequence[str]], list[list[int]]]
"""Texts -> token ids of each text."""
Progress = Callable[[int, int], None]
"""Called with the number of finished items and the total number."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the length of its answer."""

    prompt: list[int]
    """Token ids."""
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of the predictions for answers that are not in the training data."""

    trained_on: int
    """Number of answers in the training data."""
    judged_on: int
    """Number of answers that were predicted."""
    spearman: float
    """Rank correlation of predicted and true log length."""
    pairwise_order: float
    """Share of pairs of answers for which the longer one is predicted correctly; 0.5 is chance."""
    median_factor: float
    """Median factor between the predicted and the true length."""
    prediction_seconds: float
    """Median time of one prediction, in seconds."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON."""
        return asdict(self)


def conversation_of(pair: TextPair) -> str:
    """Return the id of the pair's conversation.

    ShareGPT cuts long conversations into records with ids ``<conversation>_<position>``.
    """
    return pair.id.rpartition("_")[0] or pair.id or pair.prompt


HoldOut = Literal["conversations", "texts"]


def split(
    pairs: Iterable[TextPair], num_train: int, by: HoldOut = "conversations"
) -> tuple[list[list[TextPair]], list[TextPair]]:
    """Split pairs into (records to train on, each with all its answers; first answers of held-out records).

    By "conversations", entire conversations are held out. By "texts", only records are held out: other
    records of the same conversation may be in the training data. A held-out prompt is never in the training
    data. A hash decides what is held out. A smaller ``num_train`` gives a prefix of a larger one's records.
    """

    def draw(record: Sequence[TextPair]) -> float:
        return _draw(conversation_of(record[0]) if by == "conversations" else record[0].prompt)

    records = [list(group) for _, group in groupby(pairs, key=lambda pair: pair.id)]
    records.sort(key=draw)
    held_out = [record[0] for record in records if draw(record) < HELD_OUT]
    held_out_prompts = {pair.prompt for pair in held_out}
    rest = records[len(held_out) :]
    train = [[pair for pair in record if pair.prompt not in held_out_prompts] for record in rest]
    return [record for record in train if record][:num_train], held_out


def without(pairs: Iterable[TextPair], others: Iterable[TextPair]) -> list[TextPair]:
    """Return the pairs whose conversation and prompt do not occur in ``others``."""
    conversations, prompts = set(), set()
    for other in others:
        conversations.add(conversation_of(other))
        prompts.add(other.prompt)
    return [p for p in pairs if conversation_of(p) not in conversations and p.prompt not in prompts]


def encode(pairs: Sequence[TextPair], encoder: Encoder, progress: Progress) -> list[Example]:
    """Tokenize the pairs in order. Leaves out pairs that no workload sends because of their length."""
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
    """Train on the examples ``epochs`` times, in a random order with a fixed seed."""
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
    """Measure the quality of the predictions. Raises ValueError if there are fewer than two examples."""
    import numpy as np
    from scipy.stats import spearmanr

    if len(examples) < 2:
        raise ValueError("fewer than two answers are held out: give more conversations")
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
    """Return an encoder that uses the tokenizer.json in a model's folder, without special tokens.

    Raises ValueError if the folder has no tokenizer.json.
    """
    from fgengine.model.tokenizer_files import open_tokenizer

    tokenizer = open_tokenizer(folder)

    def encoder(texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return encoder


def _draw(text: str) -> float:
    """Return a number between 0 and 1 that depends only on the text."""
    digest = hashlib.sha256(f"{SPLIT_SEED} {text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
