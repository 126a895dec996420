"""Tests of training the predictor: held-out data remains unseen, and quality is measured correctly."""

from __future__ import annotations

import random

import pytest

from fgbench import training
from fgbench.training import Example
from fgbench.workload.texts import TextPair
from fgengine.scheduling.learned import Learned
from fgengine.scheduling.predictor import Prediction


def silent(done: int, total: int) -> None:
    """Show no progress."""


def pairs(count: int) -> list[TextPair]:
    """Return conversations of two records, each with two answers."""
    return [
        TextPair(f"c{i}_{part}", f"question {i} {part} {turn}", "answer")
        for i in range(count)
        for part in range(2)
        for turn in range(2)
    ]


def test_no_conversation_is_both_trained_on_and_held_out() -> None:
    train, held_out = training.split(pairs(300), 1000)
    learned = {training.conversation_of(pair) for record in train for pair in record}
    judged = {training.conversation_of(pair) for pair in held_out}
    assert not learned & judged
    assert len(learned | judged) == 300
    assert 0.1 < len(judged) / 300 < 0.3
    assert all(pair.prompt.endswith(" 0") for pair in held_out)  # first answers
    fewer, same = training.split(pairs(300), 50)
    assert (fewer, same) == (train[:50], held_out)


def test_by_texts_only_the_text_itself_is_held_out() -> None:
    train, held_out = training.split(pairs(300), 1000, "texts")
    assert not {p.prompt for record in train for p in record} & {p.prompt for p in held_out}
    learned = {training.conversation_of(pair) for record in train for pair in record}
    assert learned & {training.conversation_of(pair) for pair in held_out}
    assert 0.1 < len(held_out) / 600 < 0.3


def test_a_held_out_prompt_is_not_trained_on_under_another_id() -> None:
    many = pairs(200)
    _, held_out = training.split(many, 1000)
    copies = [TextPair(f"copy{i}_0", pair.prompt, "again") for i, pair in enumerate(held_out)]
    train, held_out = training.split([*many, *copies], 1000)
    prompts = {pair.prompt for pair in held_out}
    assert not any(pair.prompt in prompts for record in train for pair in record)


def test_leaving_out_a_file_leaves_out_its_entire_conversations() -> None:
    others = [TextPair("c3_1", "something else", "x"), TextPair("z_0", "question 7 0 1", "x")]
    left = training.without(pairs(10), others)
    assert {training.conversation_of(pair) for pair in left} == {f"c{i}" for i in range(10) if i != 3}
    assert "question 7 0 1" not in {pair.prompt for pair in left}


def test_only_lengths_that_a_workload_sends_are_used() -> None:
    def encoder(texts: object) -> list[list[int]]:
        return [list(range(len(text))) for text in texts]  # type: ignore[attr-defined]

    texts = [("abcd", "abcdef"), ("abc", "abcdef"), ("abcd", "abc"), ("a" * 1025, "abcdef")]
    found = training.encode([TextPair("", p, c) for p, c in texts], encoder, silent)
    assert [(len(e.prompt), e.output_tokens) for e in found] == [(4, 6)]


class FirstToken:
    """Predicts the value of the prompt's first token."""

    def predict_length(self, prompt: list[int]) -> Prediction:
        return Prediction(float(prompt[0]), 1.0)


def test_quality_of_a_perfect_and_of_a_reversed_prediction() -> None:
    right = training.judge(FirstToken(), [Example([n], n) for n in range(1, 200)], 7)  # type: ignore[arg-type]
    assert (right.spearman, right.pairwise_order) == pytest.approx((1.0, 1.0))
    assert (right.median_factor, right.trained_on, right.judged_on) == (pytest.approx(1.0), 7, 199)
    wrong = training.judge(FirstToken(), [Example([n], 200 - n) for n in range(1, 200)], 7)  # type: ignore[arg-type]
    assert (wrong.spearman, wrong.pairwise_order) == pytest.approx((-1.0, 0.0))
    with pytest.raises(ValueError, match="held out"):
        training.judge(FirstToken(), [Example([1], 1)], 7)  # type: ignore[arg-type]


@pytest.mark.slow
def test_training_improves_the_predictions() -> None:
    source = random.Random(0)

    def some(low: int) -> Example:
        long = low > 0
        prompt = [low + source.randrange(200) for _ in range(20)]
        return Example(prompt, 600 if long else 20)

    examples = [some(source.choice([0, 1000])) for _ in range(800)]
    predictor = Learned("m")
    training.train(predictor, examples[:700], silent)
    quality = training.judge(predictor, examples[700:], 700)
    assert quality.pairwise_order > 0.9
    assert quality.median_factor < 2.0
