"""The choices of an answer: which requests of the engine make them, and how their tokens come together.

A request may have several prompts and ask for several answers to each. Each of them is one request of the
engine, so each has a place of its own in the scheduler's order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from fgengine.request import SamplingParams
from fgengine.server.generation import Ask, Generation, Piece
from fgengine.server.logprobs import Listed, ShownTokens, listed_prompt
from fgengine.server.schemas import BadRequestError, Wish
from fgengine.text import TextCodec

MAX_ANSWERS = 128
"""Answers that one request may ask for: prompts x best_of."""
MAX_SCORED = 200_000
"""Log probabilities of prompt tokens that one answer may list, with their alternatives."""


def check_count(num_prompts: int, best_of: int, room: int | None = None) -> None:
    """Raise BadRequestError if a request asks for more answers than ``MAX_ANSWERS``.

    ``room``: requests that an idle engine takes at once; None: any number. With more answers, even an idle
    engine would refuse some of them.
    """
    count, most = num_prompts * best_of, MAX_ANSWERS if room is None else min(room, MAX_ANSWERS)
    if count > most:
        number = f"{num_prompts} prompt{'s' if num_prompts > 1 else ''} x {best_of}"
        limit = "" if most == MAX_ANSWERS else " (max_batch_size + max_queue)"
        raise BadRequestError(
            f"this request asks for {count} answers ({number}): ask for at most {most}{limit}",
            "prompt" if num_prompts > most else "n",
        )


def check_length(prompt_tokens: int, max_tokens: int, most: int, field: str) -> None:
    """Raise BadRequestError if a prompt and its answer may have more than ``most`` tokens together.

    ``field``: the one that has the prompt.
    """
    total = prompt_tokens + max_tokens
    if total > most:
        raise BadRequestError(
            f"prompt + max_tokens is {total} ({prompt_tokens} + {max_tokens}), more than {most}, which is "
            "the model's context length: shorten one of them",
            field,
            "context_length_exceeded",
        )


def asks(
    prompts: Sequence[list[int]], params: SamplingParams, wish: Wish, stops: Sequence[str], shows_stop: bool
) -> list[Ask]:
    """Return the engine's requests, the answers to the first prompt first.

    The answers to one prompt have the seeds ``seed``, ``seed + 1`` and so on. So they differ, and a prompt
    gets the same answers whichever others it is sent with. Only the first of them scores the prompt.

    Raises BadRequestError if there are more than ``MAX_ANSWERS``, or more log probabilities of the prompts
    than ``MAX_SCORED``.
    """
    check_count(len(prompts), wish.best_of)
    if params.prompt_logprobs is not None:
        listed = sum(map(len, prompts)) * wish.n * (1 + params.prompt_logprobs)
        if listed > MAX_SCORED:
            raise BadRequestError(
                f"echo with logprobs asks for {listed} log probabilities of the prompts: ask for at most "
                f"{MAX_SCORED}, with shorter or fewer prompts, or fewer alternatives",
                "logprobs",
            )
    return [
        Ask(prompt, _of_answer(params, number), stops, shows_stop)
        for prompt in prompts
        for number in range(wish.best_of)
    ]


def _of_answer(params: SamplingParams, number: int) -> SamplingParams:
    """Return the parameters of a prompt's answer with this number."""
    if number == 0:
        return params
    seed = params.seed
    if seed is not None:
        seed = (seed + number + 2**63) % 2**64 - 2**63
    return replace(params, seed=seed, prompt_logprobs=None)


async def arriving(generations: Sequence[Generation]) -> AsyncIterator[list[tuple[int, list[Piece]]]]:
    """Yield the pieces that arrived together, each list with the number of its generation, in their order.

    Raises:
        EngineError: the engine is broken or stopping.
        QueueTimeout: the engine dropped one of the requests before it started.
    """
    if len(generations) == 1:
        async for batch in generations[0].pieces():
            yield [(0, batch)]
        return
    streams = [generation.pieces() for generation in generations]
    waiting = {asyncio.ensure_future(_next(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            arrived = sorted((waiting.pop(task), task.result()) for task in done)
            for number, _ in arrived:
                if generations[number].finish_reason is None:
                    waiting[asyncio.ensure_future(_next(streams[number]))] = number
            yield arrived
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def after_the_first(
    arrivals: AsyncIterator[list[tuple[int, list[Piece]]]], best_of: int
) -> AsyncIterator[list[tuple[int, list[Piece]]]]:
    """Hold back what arrives of a prompt's answers until its first one has begun, which brings the scores.

    Raises what ``arriving`` raises.
    """
    begun: set[int] = set()
    held: dict[int, list[Piece]] = {}
    async for arrived in arrivals:
        for number, batch in arrived:
            held.setdefault(number, []).extend(batch)
            begun.add(number)
        ready = sorted(number for number in held if number - number % best_of in begun)
        if ready:
            yield [(number, held.pop(number)) for number in ready]


async def _next(stream: AsyncIterator[list[Piece]]) -> list[Piece]:
    return await anext(stream)


class Choice:
    """One answer, as its pieces arrive."""

    def __init__(
        self,
        generation: Generation,
        wish: Wish,
        codec: TextCodec,
        prompt_text: str = "",
        first: Choice | None = None,
    ) -> None:
        """``prompt_text``: comes before the output, if the prompt is echoed.

        ``first``: the first answer to the same prompt, which must begin before this one if the prompt is
        scored; None: this is the first one.
        """
        self.generation = generation
        self.listed: list[Listed] = []
        """The tokens for the list of log probabilities."""
        self.logprob = 0.0
        """The sum of the log probabilities of the output."""
        self._wish = wish
        self._codec = codec
        self._prompt_text = prompt_text
        self._first = first
        self._listed_prompt: list[Listed] = []
        """The prompt's tokens, if it is scored and this is its first answer."""
        self._begun = False
        self._shown = ShownTokens()

    def add(self, piece: Piece) -> str:
        """Add a piece; return the text that it adds to the answer."""
        wish, new = self._wish, piece.new
        text = "" if wish.no_output else piece.text
        if not self._begun:
            self._begun = True
            text = self._prompt_text + text
            if wish.scores_prompt and self._first is None:
                self._listed_prompt = listed_prompt(
                    self.generation.prompt, new.prompt or (), self._codec, self._prompt_text
                )
            self.listed += (self._first or self)._listed_prompt
        if wish.no_output:
            return text
        if wish.logprobs is not None:
            offset = len(self._prompt_text)
            self.listed += [one._replace(start=offset + one.start) for one in self._shown.add(piece)]
        self.logprob += new.logprob or 0.0
        return text

    @property
    def output_tokens(self) -> int:
        """Number of tokens in the output."""
        return 0 if self._wish.no_output else self.generation.output_tokens

    @property
    def mean_logprob(self) -> float:
        """The mean log probability of the output's tokens."""
        return self.logprob / max(1, self.generation.output_tokens)


def choices_of(
    generations: Sequence[Generation], wish: Wish, codec: TextCodec, prompt_texts: Sequence[str] = ()
) -> list[Choice]:
    """Return the choices in the order of ``asks``. ``prompt_texts``: of each prompt, if it is echoed."""
    choices: list[Choice] = []
    for at, generation in enumerate(generations):
        prompt, number = divmod(at, wish.best_of)
        text = prompt_texts[prompt] if prompt_texts else ""
        choices.append(Choice(generation, wish, codec, text, choices[at - number] if number else None))
    return choices


def best(choices: Sequence[Choice], wish: Wish) -> list[int]:
    """Return the numbers of the choices that are given: of each prompt the n with the highest log probability
    per token, the best one first.
    """
    numbers = range(len(choices))
    if wish.best_of == wish.n:
        return list(numbers)
    groups = (numbers[at : at + wish.best_of] for at in numbers[:: wish.best_of])
    return [
        number
        for group in groups
        for number in sorted(group, key=lambda one: choices[one].mean_logprob, reverse=True)[: wish.n]
    ]
