"""POST /generate, in FastServe's form or in that of vLLM's old api_server.

Both stream messages that end with a NUL byte, each with the complete text so far. The bodies of their clients
do not differ, so an option of the server chooses the form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from fgengine.scheduling.refusal import Busy, RequestRefused
from fgengine.server.bodies import read_posted
from fgengine.server.choices import arriving, asks, check_length
from fgengine.server.client import EngineError
from fgengine.server.forms import usage
from fgengine.server.handlers import OPTIONS, SERVICE
from fgengine.server.models import check_model
from fgengine.server.schemas import BadRequestError, GenerateBody, refused_by_engine
from fgengine.server.streams import Stream

Form = Callable[[str, Sequence[str], bool], Any]
"""Makes ``text`` of the prompt, the outputs so far, and whether they are streamed."""


def _fastserve(prompt: str, outputs: Sequence[str], streamed: bool) -> str:
    return outputs[0] if streamed else prompt + outputs[0]


def _vllm(prompt: str, outputs: Sequence[str], streamed: bool) -> list[str]:
    return [prompt + output for output in outputs]


STREAM_TYPE = "application/octet-stream"
"""Content-Type of a stream, which is no JSON text because of the NUL bytes."""


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /generate: answers ``{"text": ...}``, or streams such objects.

    A stream has one for the tokens that have arrived since the one before was sent. So for a client that
    reads late only the newest text is kept. The last object also has ``usage`` and, for one answer,
    ``fgengine``, which old clients ignore.
    """
    service = request.app[SERVICE]
    service.check_accepting()
    body, arrival = await read_posted(request, GenerateBody)
    check_model(request, body.model)
    form: Form = _vllm if request.app[OPTIONS].generate_form == "vllm" else _fastserve
    wish = body.wish()
    if form is _fastserve and wish.n > 1:
        raise BadRequestError(
            "n must be 1, because an answer in FastServe's form has one text: leave it out, or start the "
            "server with --generate-form vllm",
            "n",
            "unsupported_value",
        )
    posted = body.one_prompt()
    prompt = await service.encoder.prompt(posted)
    assert service.engine.model is not None
    params = body.params(wish, max_tokens=16)
    check_length(len(prompt), params.max_tokens, service.engine.model.max_model_len, "prompt")
    await service.encoder.check(params.grammar)
    requests = asks([prompt], params, wish, body.stops(), body.shows_stop)
    begins = posted if isinstance(posted, str) else service.codec.decode(posted)
    streamed = bool(body.stream)
    stream = Stream(request, STREAM_TYPE, lambda json: json + b"\0")
    try:
        async with service.generate(requests, arrival=arrival, user=body.user or "") as generations:
            if streamed and not service.engine.drops_waiting:
                await stream.open()
            outputs = [""] * len(generations)
            async for arrived in arriving(generations):
                for number, batch in arrived:
                    outputs[number] += "".join([piece.text for piece in batch])
                if streamed and any(generation.finish_reason is None for generation in generations):
                    await stream.write([msgspec.json.encode({"text": form(begins, outputs, streamed)})])
            last: dict[str, Any] = {
                "text": form(begins, outputs, streamed),
                "usage": usage(len(prompt), sum(generation.output_tokens for generation in generations)),
            }
            if len(generations) == 1:
                last["fgengine"] = generations[0].accounting
            if streamed:
                await stream.write([msgspec.json.encode(last)])
                return await stream.close()
        return web.Response(body=msgspec.json.encode(last), content_type="application/json")
    except (EngineError, Busy) as error:
        return await stream.fail(error)
    except RequestRefused as error:
        raise refused_by_engine(error, body, "prompt") from None
