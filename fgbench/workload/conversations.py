"""Datasets of conversations: each turn's prompt holds all earlier turns, and follows the answer before it.

The earlier answers in a prompt are those of the dataset, not of the server. So every server gets the same
prompts. A prefix cache finds the earlier prompts again, but not the earlier answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fgbench.workload.datasets import Sample, TokenCounter, any_length
from fgbench.workload.lengths import MAX_LENGTH, LengthDistribution
from fgbench.workload.texts import TextPair

if TYPE_CHECKING:
    from numpy.random import Generator


@dataclass(frozen=True, slots=True)
class Conversations:
    """Recorded conversations with all their turns."""

    name: str
    talks: Sequence[Sequence[TextPair]]
    """The questions and answers of each conversation, in order."""
    count_tokens: TokenCounter

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield the turns of conversations without end; a conversation is repeated after all others.

        Raises ValueError if no conversation has a usable turn.
        """
        while True:
            is_empty = True
            for position in rng.permutation(len(self.talks)).tolist():
                for sample in self._turns(self.talks[position]):
                    is_empty = False
                    yield sample
            if is_empty:
                raise ValueError(
                    f"dataset {self.name}: no conversation has a usable turn: use another dataset"
                )

    def _turns(self, talk: Sequence[TextPair]) -> Iterator[Sample]:
        """Yield the turns up to the first that is empty or too long."""
        messages: tuple[str, ...] = ()
        for turn, pair in enumerate(talk):
            messages = (*messages, pair.prompt)
            text = "\n".join(messages)
            prompt, output = self.count_tokens([text, pair.completion])
            if not any_length(prompt, output):
                return
            yield Sample(prompt, output, text, turn=turn, messages=messages)
            messages = (*messages, pair.completion)


@dataclass(frozen=True, slots=True)
class SyntheticConversations:
    """Conversations of random tokens. Each question has a length, and so has each answer."""

    questions: LengthDistribution
    answers: LengthDistribution
    turns: LengthDistribution
    """Number of turns of a conversation."""

    @property
    def name(self) -> str:
        return f"synthetic-{self.questions.name}x{self.answers.name}-turns{self.turns.name}"

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield the turns of new conversations without end."""
        conversation = 0
        while True:
            shared: tuple[tuple[str, int], ...] = ()
            for turn in range(self.turns.draw(rng)):
                question, answer = self.questions.draw(rng), self.answers.draw(rng)
                shared = (*shared, (f"conversation {conversation} question {turn}", question))
                prompt = sum(tokens for _, tokens in shared)
                if prompt > MAX_LENGTH:
                    break
                yield Sample(prompt, answer, shared=shared, turn=turn)
                shared = (*shared, (f"conversation {conversation} answer {turn}", answer))
            conversation += 1
