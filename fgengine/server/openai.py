"""The OpenAI-compatible routes: completions and chat completions.

In addition to OpenAI's fields, an answer (the last message of a stream) has ``fgengine``: how the request's
time was spent. If there are several choices, each of them has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec
from aiohttp import web

from fgengine.scheduling.refusal import Busy, RequestRefused
from fgengine.server.bodies import read_posted
from fgengine.server.choices import (
    Choice,
    after_the_first,
    arriving,
    asks,
    best,
    check_count,
    check_length,
    choices_of,
)
from fgengine.server.client import EngineError
from fgengine.server.forms import CallForm, ChatForm, CompletionForm, Form, Write, usage
from fgengine.server.generation import Piece
from fgengine.server.handlers import SERVICE
from fgengine.server.models import check_model, served_names
from fgengine.server.schemas import (
    BadRequestError,
    ChatBody,
    CompletionBody,
    SamplingBody,
    Wish,
    refused_by_engine,
)
from fgengine.server.streams import Stream
from fgengine.text import TextCodec

COMPLETION, CHAT = CompletionForm(), ChatForm()
_encode = msgspec.json.Encoder().encode
P = ParamSpec("P")
T = TypeVar("T")


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    service = request.app[SERVICE]
    service.check_accepting()
    body, arrival = await read_posted(request, CompletionBody)
    check_model(request, body.model)
    wish, posted = body.wish(), body.prompts()
    special = body.add_special_tokens is not False
    assert service.engine.model is not None
    check_count(len(posted), wish.best_of, service.engine.model.room)
    prompts = await service.encoder.prompts(posted, special_tokens=special)
    texts: list[str] = []
    if wish.echo:
        texts = [one if isinstance(one, str) else service.codec.decode(one) for one in posted]
    return await _answer(request, COMPLETION, body, wish, prompts, arrival, texts)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    service = request.app[SERVICE]
    service.check_accepting()
    body, arrival = await read_posted(request, ChatBody)
    check_model(request, body.model)
    wish, calls = body.wish(), body.calls()
    prompt = await service.encoder.chat(body.plain_messages(), body.shown_tools())
    if calls is None:
        return await _answer(request, CHAT, body, wish, [prompt], arrival)
    try:
        await service.encoder.check(calls.grammar)
    except BadRequestError as error:
        raise BadRequestError(calls.explained(str(error)), error.field, error.code) from None
    return await _answer(request, CallForm(calls.function), body, wish, [prompt], arrival)


async def _answer(
    request: web.Request,
    form: Form,
    body: SamplingBody,
    wish: Wish,
    prompts: Sequence[list[int]],
    arrival: float,
    texts: Sequence[str] = (),
) -> web.StreamResponse:
    """Generate and send the answer. ``texts``: those of the prompts, if they are echoed."""
    service = request.app[SERVICE]
    assert service.engine.model is not None
    check_count(len(prompts), wish.best_of, service.engine.model.room)
    longest, most = max(map(len, prompts)), service.engine.model.max_model_len
    params = body.params(wish, max_tokens=form.default_max_tokens or max(1, most - longest))
    check_length(longest, 0 if wish.no_output else params.max_tokens, most, form.prompt_field)
    await service.encoder.check(params.grammar)
    requests = asks(prompts, params, wish, body.stops(), body.shows_stop)
    head = {"created": int(time.time()), "model": served_names(request)[0]}
    stream = Stream(request, "text/event-stream", lambda json: b"data: " + json + b"\n\n")
    try:
        async with service.generate(requests, arrival=arrival, user=body.user or "") as generations:
            number = generations[0].id.rpartition("-")[2]
            head["id"] = f"{form.id_prefix}-{service.instance}-{number}"
            choices = choices_of(generations, wish, service.codec, texts)
            answer = _Answer(form, head, choices, wish, service.codec)
            if not body.stream:
                return await answer.complete()
            if not service.engine.drops_waiting:  # otherwise the status is known only when the request starts
                await stream.open()
            asks_usage = body.stream_options is not None and body.stream_options.include_usage
            await answer.stream(stream, asks_usage)
        return await stream.close(b"data: [DONE]\n\n")
    except (EngineError, Busy) as error:
        return await stream.fail(error)
    except RequestRefused as error:
        raise refused_by_engine(error, body, form.prompt_field) from None


class _Answer:
    """The answer to a request whose choices the engine generates."""

    def __init__(
        self, form: Form, head: dict[str, Any], choices: Sequence[Choice], wish: Wish, codec: TextCodec
    ) -> None:
        self._form = form
        self._head = head
        self._choices = choices
        self._generations = [choice.generation for choice in choices]
        self._wish = wish
        self._codec = codec

    async def complete(self) -> web.Response:
        """Return the answer when all choices are complete."""
        pieces: list[list[Piece]] = [[] for _ in self._choices]
        async for arrived in arriving(self._generations):
            for number, batch in arrived:
                pieces[number] += batch
        body = await self._made(self._body, pieces)
        return web.Response(body=body, content_type="application/json")

    async def stream(self, stream: Stream, asks_usage: bool) -> None:
        """Send a message for each token. The messages of tokens that arrived together are one write."""
        writers = [self._form.writer() for _ in self._choices]
        open_choices = len(self._choices)
        arrivals = arriving(self._generations)
        if self._wish.scores_prompt and self._wish.best_of > 1:
            arrivals = after_the_first(arrivals, self._wish.best_of)
        async for arrived in arrivals:
            bodies = await self._made(self._chunks, arrived, writers, asks_usage)
            open_choices -= sum(batch[-1].finish_reason is not None for _, batch in arrived)
            if asks_usage and not open_choices:
                last = {
                    **self._head,
                    "object": self._form.chunk_object,
                    "choices": [],
                    "usage": self._usage(),
                }
                if len(self._choices) == 1:
                    last["fgengine"] = self._generations[0].accounting
                bodies.append(_encode(last))
            await stream.write(bodies)

    async def _made(self, make: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return what ``make`` returns. Lists of a whole prompt take long, so a thread makes them."""
        if self._wish.scores_prompt:
            return await asyncio.to_thread(make, *args, **options)
        return make(*args, **options)

    def _body(self, pieces: Sequence[Sequence[Piece]]) -> bytes:
        """Return the body of a complete answer. ``pieces``: those of each choice."""
        choices, alone = self._choices, len(self._choices) == 1
        texts = [
            "".join([choice.add(piece) for piece in own]) for choice, own in zip(choices, pieces, strict=True)
        ]
        given = [
            {
                "index": index,
                **self._form.complete(texts[number], choices[number].generation.finish_reason),
                "logprobs": self._logprobs(choices[number]),
                **({} if alone else {"fgengine": choices[number].generation.accounting}),
            }
            for index, number in enumerate(best(choices, self._wish))
        ]
        answer = {
            **self._head,
            "object": self._form.object,
            "choices": given,
            "usage": self._usage(),
            **({"fgengine": choices[0].generation.accounting} if alone else {}),
        }
        return _encode(answer)

    def _chunks(
        self, arrived: Sequence[tuple[int, Sequence[Piece]]], writers: Sequence[Write], asks_usage: bool
    ) -> list[bytes]:
        """Return a message for each piece. ``writers``: those of the choices."""
        choices, plain = self._choices, self._wish.plain
        head = {**self._head, "object": self._form.chunk_object}
        alone = len(choices) == 1
        bodies: list[bytes] = []
        for number, batch in arrived:
            for piece in batch:
                text = piece.text if plain else choices[number].add(piece)
                choice = {"index": number, **writers[number](text, piece.finish_reason), "logprobs": None}
                if not plain and choices[number].listed:
                    choice["logprobs"] = self._logprobs(choices[number])
                chunk = {**head, "choices": [choice]}
                if asks_usage:
                    chunk["usage"] = None  # the last message has it
                if piece.finish_reason is not None:
                    if not alone:
                        choice["fgengine"] = self._generations[number].accounting
                    elif not asks_usage:
                        chunk["fgengine"] = self._generations[number].accounting
                bodies.append(_encode(chunk))
        return bodies

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Return the list of the tokens since the last call; None if the request asks for no list."""
        if self._wish.logprobs is None:
            return None
        listed, choice.listed = choice.listed, []
        return self._form.logprobs(listed, self._wish, self._codec)

    def _usage(self) -> dict[str, int]:
        """Return the numbers of tokens. A prompt counts once, and every generated answer counts."""
        prompts = self._generations[:: self._wish.best_of]
        return usage(
            sum(len(generation.prompt) for generation in prompts),
            sum(choice.output_tokens for choice in self._choices),
        )
