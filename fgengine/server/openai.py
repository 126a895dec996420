"""The OpenAI-compatible routes: completions, chat completions, models.

The server has one model, and a request for another one is a 404. In addition to OpenAI's fields, an answer
(the last message of a stream) has ``fgengine``: how the request's time was spent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from fgengine.server.answers import SERVICE, Stream, check_model, read_posted, usage
from fgengine.server.client import EngineError
from fgengine.server.generation import Generation, Piece, Service
from fgengine.server.schemas import ChatBody, CompletionBody, SamplingBody
from fgengine.text import TextCodec


class Form(Protocol):
    """The parts of an answer whose format differs between completions and chat completions."""

    object: str
    chunk_object: str
    id_prefix: str
    default_max_tokens: int | None
    """None: as many tokens as fit."""

    def complete_choice(self, text: str, pieces: Sequence[Piece], codec: TextCodec | None) -> dict[str, Any]:
        """Return the fields of a complete answer's choice; with log probabilities if there is a codec."""
        ...

    def streamed_choice(self, piece: Piece, first: bool, codec: TextCodec | None) -> dict[str, Any]:
        """Return the fields of one streamed choice; with log probabilities if there is a codec."""
        ...


class CompletionForm:
    """The format of completions; see ``Form``."""

    object = chunk_object = "text_completion"
    id_prefix = "cmpl"
    default_max_tokens: int | None = 16

    def complete_choice(self, text: str, pieces: Sequence[Piece], codec: TextCodec | None) -> dict[str, Any]:
        return {"text": text, "logprobs": codec and self._logprobs(pieces, codec)}

    def streamed_choice(self, piece: Piece, first: bool, codec: TextCodec | None) -> dict[str, Any]:
        return {"text": piece.text, "logprobs": codec and self._logprobs([piece], codec)}

    @staticmethod
    def _logprobs(pieces: Sequence[Piece], codec: TextCodec) -> dict[str, Any]:
        tokens = [codec.token_text(piece.token) for piece in pieces]
        values = [piece.logprob for piece in pieces]
        top = [{token: value} for token, value in zip(tokens, values, strict=True)]
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": top}


class ChatForm:
    """The format of chat completions; see ``Form``."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"
    default_max_tokens: int | None = None

    def complete_choice(self, text: str, pieces: Sequence[Piece], codec: TextCodec | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"message": message, "logprobs": codec and self._logprobs(pieces, codec)}

    def streamed_choice(self, piece: Piece, first: bool, codec: TextCodec | None) -> dict[str, Any]:
        delta = {"role": "assistant", "content": piece.text} if first else {"content": piece.text}
        return {"delta": delta, "logprobs": codec and self._logprobs([piece], codec)}

    @staticmethod
    def _logprobs(pieces: Sequence[Piece], codec: TextCodec) -> dict[str, Any]:
        return {
            "content": [
                {"token": codec.token_text(piece.token), "logprob": piece.logprob, "top_logprobs": []}
                for piece in pieces
            ]
        }


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    service = request.app[SERVICE]
    service.engine.check_accepting()
    body, arrival = await read_posted(request, CompletionBody)
    _check_model(service, body)
    logprobs = body.wants_logprobs()
    prompt = await service.encoder.prompt(body.one_prompt())
    return await _answer(request, CompletionForm(), body, prompt, logprobs, arrival)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    service = request.app[SERVICE]
    service.engine.check_accepting()
    body, arrival = await read_posted(request, ChatBody)
    _check_model(service, body)
    prompt = await service.encoder.chat(body.plain_messages())
    return await _answer(request, ChatForm(), body, prompt, bool(body.logprobs), arrival)


def _check_model(service: Service, body: SamplingBody) -> None:
    assert service.engine.model is not None
    check_model(body.model, service.engine.model.model_name)


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: the model, with the sizes that a client needs to make prompts that fit."""
    return web.json_response({"object": "list", "data": [_model(request.app[SERVICE])]})


async def model(request: web.Request) -> web.Response:
    """GET /v1/models/NAME: the model. 404 if it has another name."""
    found = _model(request.app[SERVICE])
    check_model(request.match_info["name"], found["id"])
    return web.json_response(found)


def _model(service: Service) -> dict[str, Any]:
    service.engine.check_ready()
    assert service.engine.model is not None
    name = service.engine.model.model_name
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "fgengine",
        "root": name,
        "parent": None,
        "permission": [],
        "max_model_len": service.engine.model.max_model_len,
        "vocab_size": service.engine.model.vocab_size,
    }


async def _answer(
    request: web.Request, form: Form, body: SamplingBody, prompt: list[int], logprobs: bool, arrival: float
) -> web.StreamResponse:
    service = request.app[SERVICE]
    assert service.engine.model is not None
    tokens_left = max(1, service.engine.model.max_model_len - len(prompt))
    params = body.params(max_tokens=form.default_max_tokens or tokens_left, logprobs=logprobs)
    stops = body.stops()
    codec = service.codec if logprobs else None
    head = {"created": int(time.time()), "model": service.engine.model.model_name}
    stream = Stream(request, "text/event-stream", lambda json: b"data: " + json + b"\n\n")
    try:
        async with service.generate(
            prompt, params, stops, arrival=arrival, user=body.user or ""
        ) as generation:
            number = generation.id.rpartition("-")[2]
            head["id"] = f"{form.id_prefix}-{service.instance}-{number}"
            if not body.stream:
                return await _answer_complete(form, head, prompt, generation, codec)
            if not service.engine.drops_waiting:  # otherwise the status is known only when the request starts
                await stream.open()
            asks_usage = body.stream_options is not None and body.stream_options.include_usage
            await _answer_streamed(stream, form, head, prompt, generation, codec, asks_usage)
        return await stream.close(b"data: [DONE]\n\n")
    except EngineError as error:
        return await stream.fail(error)


async def _answer_complete(
    form: Form, head: dict[str, Any], prompt: list[int], generation: Generation, codec: TextCodec | None
) -> web.Response:
    pieces = [piece async for batch in generation.pieces() for piece in batch]
    text = "".join(piece.text for piece in pieces)
    choice = {
        "index": 0,
        **form.complete_choice(text, pieces, codec),
        "finish_reason": generation.finish_reason,
    }
    answer = {
        **head,
        "object": form.object,
        "choices": [choice],
        "usage": usage(len(prompt), generation),
        "fgengine": generation.accounting,
    }
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


async def _answer_streamed(
    stream: Stream,
    form: Form,
    head: dict[str, Any],
    prompt: list[int],
    generation: Generation,
    codec: TextCodec | None,
    asks_usage: bool,
) -> None:
    encode = msgspec.json.Encoder().encode
    head = {**head, "object": form.chunk_object}
    first = True
    async for batch in generation.pieces():
        bodies: list[bytes] = []
        for piece in batch:
            part = form.streamed_choice(piece, first, codec)
            chunk = {**head, "choices": [{"index": 0, **part, "finish_reason": piece.finish_reason}]}
            first = False
            if asks_usage:
                chunk["usage"] = None  # the last message has it
            elif piece.finish_reason is not None:
                chunk["fgengine"] = generation.accounting
            bodies.append(encode(chunk))
        if generation.finish_reason is not None and asks_usage:
            counts = usage(len(prompt), generation)
            bodies.append(encode({**head, "choices": [], "usage": counts, "fgengine": generation.accounting}))
        await stream.write(bodies)
