"""POST /generate, in the format of FastServe and vLLM's old api_server.

Each message of a stream contains the complete text so far.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from fgengine.server.answers import SERVICE, Stream, prompt_ids, read_posted, usage
from fgengine.server.client import EngineError
from fgengine.server.generation import Generation
from fgengine.server.schemas import GenerateBody

STREAM_TYPE = "application/octet-stream"
"""Content-Type of a stream, which is no JSON text because of the NUL bytes."""


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /generate: answers ``{"text": [prompt + output]}``.

    A stream has one such object for each token, each followed by a NUL byte. The last object also has
    ``usage`` and ``fgengine``, which old clients ignore.
    """
    service = request.app[SERVICE]
    service.engine.check_accepting()
    body, arrival = await read_posted(request, GenerateBody)
    posted = body.one_prompt()
    prompt = await prompt_ids(posted, service.codec)
    text = posted if isinstance(posted, str) else service.codec.decode(posted)
    stream = Stream(request, STREAM_TYPE, lambda json: json + b"\0")
    try:
        async with service.generate(
            prompt, body.params(max_tokens=16), body.stops(), arrival=arrival, user=body.user or ""
        ) as generation:
            if body.stream and not service.engine.drops_waiting:
                await stream.open()
            async for batch in generation.pieces():
                bodies: list[bytes] = []
                for piece in batch:
                    text += piece.text
                    if body.stream and piece.finish_reason is None:
                        bodies.append(msgspec.json.encode({"text": [text]}))
                if body.stream and bodies:
                    await stream.write(bodies)
            last = msgspec.json.encode(_last(text, len(prompt), generation))
            if body.stream:
                await stream.write([last])
        if body.stream:
            return await stream.close()
        return web.Response(body=last, content_type="application/json")
    except EngineError as error:
        return await stream.fail(error)


def _last(text: str, prompt_tokens: int, generation: Generation) -> dict[str, Any]:
    return {"text": [text], "usage": usage(prompt_tokens, generation), "fgengine": generation.accounting}
