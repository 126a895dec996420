"""Servers for tests: with the fake engine in a thread, or with a real engine in its own process."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from fgengine.config import EngineConfig
from fgengine.model.store import tokenizer_of
from fgengine.server import worker
from fgengine.server.app import make_app
from fgengine.server.client import EngineClient
from fgengine.server.connections import Connections
from fgengine.server.encoding import Encoder
from fgengine.server.generation import Service
from fgengine.server.listener import Listener
from fgengine.server.options import ServerOptions
from fgengine.server.process import EngineProcess
from fgengine.text import TextCodec

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
MAX_MODEL_LEN = 4096
"""As in the fake engine."""


@pytest.fixture(scope="session")
def fake_engine_file() -> Path:
    return FAKE_ENGINE


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("server_fake_engine", FAKE_ENGINE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token per byte, ids 0 to 255 in byte order. So tokens can split characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = sorted(alphabet, key=_byte_of)
    tokenizer = Tokenizer(BPE(vocab={char: i for i, char in enumerate(order)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_of(char: str) -> int:
    code = ord(char)
    if code < 0x100:
        return code
    others = [b for b in range(256) if not (0x21 <= b < 0x7F or 0xA1 <= b < 0xAD or b >= 0xAE)]
    return others[code - 0x100]


@pytest.fixture(scope="session")
def encoder(byte_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    """One for all tests, because its process takes a second to start. It starts at the first chat."""
    folder = tmp_path_factory.mktemp("model")
    source = "{% for m in messages %}{% if m.role in ('robot', 'function') %}"
    source += "{{ raise_exception('no robots') }}{% endif %}"
    source += "<{{ m.role }}{% for n in (m.name, m.tool_call_id) if n %} {{ n }}{% endfor %}>{{ m.content }}"
    source += "{% for c in m.tool_calls or () %}{{ '{' }}{{ c.id }} {{ c.function.name }}"
    source += (
        "{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}{{ '}' }}{% endfor %}"
    )
    source += "{% endfor %}{% if tools %}[{{ tools | join(' ', 'function.name') }}]{% endif %}"
    source += "{% if add_generation_prompt %}<assistant>{% endif %}"
    (folder / "chat_template.jinja").write_text(source)
    byte_tokenizer.save(str(folder / "tokenizer.json"))
    encoder = Encoder(TextCodec(byte_tokenizer), folder)
    encoder.max_tokens = MAX_MODEL_LEN
    yield encoder
    encoder.close()


@pytest.fixture(scope="module")
def engine_encoder(tiny_model: Path) -> Iterator[Encoder]:
    """The tokenizer that the engine of ``serving`` takes for grammars."""
    folder = tokenizer_of(EngineConfig(model=str(tiny_model), use_dummy_weights=True))
    encoder = Encoder(TextCodec.without_chats(folder), folder)
    encoder.max_tokens = 2048
    yield encoder
    encoder.close()


@dataclass
class Served:
    """A running server."""

    url: str
    session: aiohttp.ClientSession
    engine: Any
    """The fake engine; another thread runs its steps."""
    service: Service
    connections: Connections
    runner: web.AppRunner

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def stream(self, path: str, body: dict[str, Any], end: bytes) -> list[bytes]:
        """Return the messages of a streamed answer."""
        async with self.session.post(self.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            raw = await response.read()
        assert raw.endswith(end)
        return raw.split(end)[:-1]

    def limit_length(self, tokens: int) -> None:
        """Give the model another maximum length."""
        assert self.service.engine.model is not None
        self.engine.max_model_len = tokens
        self.service.engine.model = msgspec.structs.replace(self.service.engine.model, max_model_len=tokens)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. The test's timeout ends the wait if it never does."""
        while not condition():
            await asyncio.sleep(0.005)


ServedWith = Callable[[ServerOptions], AbstractAsyncContextManager[Served]]
"""A function that starts a server with the fake engine and these options."""


@pytest.fixture
async def served(served_with: ServedWith, server_options: ServerOptions) -> AsyncIterator[Served]:
    async with served_with(server_options) as server:
        yield server


@pytest.fixture
def server_options() -> ServerOptions:
    """The settings of ``served``; a test may parametrize them."""
    return ServerOptions()


@pytest.fixture
def served_with(fake: ModuleType, encoder: Encoder) -> ServedWith:
    return lambda options: _served(fake.make_fake, encoder, options)


@pytest.fixture
def serving_engine(encoder: Encoder) -> Callable[[Any], AbstractAsyncContextManager[Served]]:
    """A function that starts a server with the given engine in a thread."""
    return lambda engine: _served(lambda config, report: engine, encoder, ServerOptions())


@asynccontextmanager
async def _served(
    make_engine: Callable[[EngineConfig, Any], Any], encoder: Encoder, options: ServerOptions
) -> AsyncIterator[Served]:
    made: list[Any] = []

    def make(config: EngineConfig, report: Any) -> Any:
        made.append(make_engine(config, report))
        return made[0]

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    thread = threading.Thread(target=worker.run, args=(theirs, make), daemon=True)
    thread.start()
    client = EngineClient()
    await client.connect(ours, EngineConfig())
    await client.settled.wait()
    service = Service(client)
    encoder._checking = asyncio.Lock()  # a lock belongs to one event loop, and each test has its own
    service.encoder = encoder
    runner = web.AppRunner(make_app(service, options), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    connections = Connections(1000)
    service.connections = connections.counters
    listener = Listener(listening, runner, connections)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with aiohttp.ClientSession() as session:
        yield Served(url, session, made[0], service, connections, runner)
    listener.close()
    await client.close()
    await runner.cleanup()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


Serving = Callable[..., AbstractAsyncContextManager[tuple[str, aiohttp.ClientSession]]]
"""A function of (middlewares of the HTTP server, settings of the engine) that gives its URL and a session."""


@pytest.fixture
def serving(tiny_model: Path, encoder: Encoder) -> Serving:
    """Start servers of the tiny model with the engine in its own process, as `fgbench serve` does."""

    @asynccontextmanager
    async def serve(*middlewares: Any, **settings: Any) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
        engine = EngineProcess()
        given = {"model": str(tiny_model), "use_dummy_weights": True, **settings}
        await engine.start(EngineConfig(device="cpu", dtype="float32", num_device_blocks=200, **given))
        await engine.settled.wait()
        assert engine.state == "ready", engine.message
        service = Service(engine)
        service.encoder = encoder
        app = make_app(service)
        app.middlewares.extend(middlewares)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listener = Listener(listening, runner, Connections(1000))
        async with aiohttp.ClientSession() as session:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", session
        listener.close()
        await engine.close()
        await runner.cleanup()
        await engine.stop()

    return serve
