"""POST /tokenize and /detokenize, in vLLM's form."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from fgengine.server.bodies import read_posted
from fgengine.server.handlers import SERVICE
from fgengine.server.models import check_model
from fgengine.server.schemas import BadRequestError, DetokenizeBody, TokenizeBody, plain


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize: the token ids of a prompt or a chat, as the other routes make them."""
    service = request.app[SERVICE]
    service.check_accepting()
    assert service.engine.model is not None
    body, _ = await read_posted(request, TokenizeBody)
    check_model(request, body.model)
    codec = service.codec
    if body.messages is not None and body.prompt is None:
        tokens = await service.encoder.chat(plain(body.messages), body.shown_tools())
    elif body.tools and body.messages is None:
        raise BadRequestError("tools needs messages, whose template shows them: leave it out", "tools")
    elif body.prompt is not None and body.messages is None:
        special = body.add_special_tokens is not False
        tokens = await service.encoder.prompt(body.prompt, special_tokens=special)
    else:
        raise BadRequestError("there must be one text: give either prompt or messages", "prompt")
    return _answer(
        {
            "count": len(tokens),
            "max_model_len": service.engine.model.max_model_len,
            "tokens": tokens,
            "token_strs": list(map(codec.token_text, tokens)) if body.return_token_strs else None,
        }
    )


async def detokenize(request: web.Request) -> web.Response:
    """POST /detokenize: the text of token ids, with special tokens."""
    service = request.app[SERVICE]
    service.check_accepting()
    assert service.engine.model is not None
    body, _ = await read_posted(request, DetokenizeBody)
    check_model(request, body.model)
    size, most = service.engine.model.vocab_size, service.engine.model.max_model_len
    if len(body.tokens) > most:
        raise BadRequestError(f"tokens has {len(body.tokens)} ids: give at most {most}", "tokens")
    if not all(0 <= token < size for token in body.tokens):
        raise BadRequestError(f"tokens has ids outside 0 .. {size - 1}", "tokens")
    return _answer({"prompt": service.codec.decode_all(body.tokens)})


def _answer(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
