"""The routes about models, and the names of the one model that the server has.

A request for another model is a 404. Without ``--served-model-name`` the model has the name that it was
started with. If that is the path of a folder, its last part is a name too.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from aiohttp import web

from fgengine.server.handlers import OPTIONS, SERVICE


class UnknownModelError(ValueError):
    """A request wants a model that the server does not have."""


def served_names(request: web.Request) -> tuple[str, ...]:
    """Return the model's names; answers carry the first. Raises EngineError until the engine has started."""
    engine = request.app[SERVICE].engine
    if engine.model is None:
        engine.check_ready()
    assert engine.model is not None
    return request.app[OPTIONS].model_names or (engine.model.model_name,)


def check_model(request: web.Request, asked: str | None) -> None:
    """Raise UnknownModelError if a request wants another model than the server has."""
    if asked:
        _name_of(request, asked)


def _name_of(request: web.Request, asked: str) -> str:
    """Return the name that is asked for, as /v1/models lists it. Raises UnknownModelError."""
    names = served_names(request)
    if asked in names:
        return asked
    if not request.app[OPTIONS].model_names and asked == PurePath(names[0]).name:
        return names[0]
    raise UnknownModelError(f"the model {asked[:100]!r} does not exist: this server has {', '.join(names)}")


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: the model under each of its names, with the sizes that a client needs to make prompts
    that fit.
    """
    listed = [_model(request, name) for name in served_names(request)]
    return web.json_response({"object": "list", "data": listed})


async def model(request: web.Request) -> web.Response:
    """GET /v1/models/NAME: the model. 404 if it has another name."""
    return web.json_response(_model(request, _name_of(request, request.match_info["name"])))


def _model(request: web.Request, name: str) -> dict[str, Any]:
    service = request.app[SERVICE]
    assert service.engine.model is not None
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "fgengine",
        "root": service.engine.model.model_name,  # clients load the tokenizer by it
        "parent": None,
        "permission": [],
        "max_model_len": service.engine.model.max_model_len,
        "vocab_size": service.engine.model.vocab_size,
    }
