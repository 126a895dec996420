"""Which system a user means: from ``--backend``, ``--url`` and the server's options to what is measured."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from fgbench.cli.flags import Command, given, takes_options
from fgbench.spec.files import options_of
from fgbench.spec.load import ClientSpec, LoadSpec
from fgengine.config import EngineConfig
from fgengine.settings import changed, described

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.backends.backend import Backend
    from fgengine.model.shape import ModelShape

CLIENT_SIDE_OPTIONS = ("model", "tokenizer")
"""Of the server's options, those that mean something to a server that runs already."""
MOST_CHARACTERS = 2_000
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""click's, which typer may carry a copy of."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend as a sweep names it."""

    label: str
    """As the user wrote it."""
    backend: str
    """``fastgen-fcfs``, ``simulated``, ... or what a server at ``url`` is called."""
    server: EngineConfig
    url: str | None = None

    @property
    def simulated(self) -> bool:
        from fgbench.backends.fastgen import SIMULATED

        return self.url is None and self.backend.partition("-")[0] == SIMULATED


def parse_choice(text: str, server: EngineConfig) -> Choice:
    """A backend's name, a URL, or NAME=URL, with options of its own behind it.

    ``fastgen-sprpt --predictor learned`` is the backend fastgen-sprpt, set like ``server`` but for the
    predictor. Nothing of ``server`` is for a server at a URL.

    Raises:
        ValueError: it cannot be read so; says why.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"--backend takes at most {MOST_CHARACTERS} characters, not {len(text)}")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--backend {text!r} cannot be read: {error}") from None
    if not words:
        raise ValueError("--backend needs a name, such as fastgen-fcfs, or NAME=http://host:port")
    name, url = _name_and_url(words[0])
    base = EngineConfig() if url is not None else server
    return Choice(shlex.join(words), name, _with_own(base, words[1:], text), url)


def _name_and_url(word: str) -> tuple[str, str | None]:
    if word.startswith(("http://", "https://")):
        return "openai", word
    name, equals, url = word.partition("=")
    if not equals:
        return word, None
    if not name or not url:
        raise ValueError(f"--backend {word!r}: a running server is named like vllm=http://127.0.0.1:8000")
    return name, url


def _with_own(base: EngineConfig, argv: list[str], text: str) -> EngineConfig:
    """``base`` with the options in ``argv``, read as a verb reads them."""

    @takes_options
    def backend(server: EngineConfig) -> None: ...

    app = typer.Typer(add_completion=False)
    app.command(add_help_option=False, cls=Command)(backend)
    command = typer.main.get_command(app)
    try:
        with command.make_context("--backend", list(argv)) as context:
            own = {name: context.params[name] for name in given(context)}
            return dataclasses.replace(base, **own)
    except (USAGE_ERROR, ValueError) as error:
        raise ValueError(f"--backend {text!r}: {getattr(error, 'message', error)}") from None


def system_of(
    server: EngineConfig,
    backend: str,
    url: str | None = None,
    port: int | None = None,
    *,
    alone: bool = False,
    policy_given: bool = False,
) -> tuple[Backend, str]:
    """The system under test and the endpoint it is spoken to by, where the user names none.

    ``alone``: no load begins while a server that runs already has other requests.
    ``--backend fastserve --port N`` is the published client's way of naming a server that runs already.
    """
    from fgbench.backends.attached import Attached
    from fgbench.backends.fastgen import FastGen

    if backend == "fastserve" and url is None:
        if port is None:
            raise ValueError("--backend fastserve measures a running server: say where with --port or --url")
        url = f"http://127.0.0.1:{port}"
    elif url is not None and port is not None:
        raise ValueError("--port is for a server to be started; with --url put the port into the URL")
    if url is not None:
        if wrong := servers_own(server):
            raise ValueError(f"{wrong[0]} is the server's, and with --url the server runs already")
        model = server.model if "model" in changed(server) else None
        if backend == "fastserve":
            return Attached(url, name=backend, model=model, alone=alone), "generate"
        name = "openai" if backend == "fastgen" else backend
        return Attached(url, name=name, model=model, alone=alone), "completions"
    return FastGen(with_policy(server, backend, policy_given), port=port), "completions"


def servers_own(server: EngineConfig) -> list[str]:
    """Flags of the options that were set and mean nothing to a server that runs already."""
    flags = {one.name: one.flag for one in described(EngineConfig)}
    return [flags[name] for name in changed(server) if name not in CLIENT_SIDE_OPTIONS]


def with_policy(server: EngineConfig, backend: str, policy_given: bool = False) -> EngineConfig:
    """The policy in the backend's name, where it has one.

    ``policy_given``: the user gave --policy, so it counts even where it is the default. Raises ValueError
    where --policy is another than the backend's.
    """
    from fgbench.backends.fastgen import policy_of

    named = policy_of(backend)
    if named is None:
        return server
    if (policy_given or "policy" in changed(server)) and server.policy != named:
        raise ValueError(f"--backend {backend} and --policy {server.policy} contradict each other")
    return dataclasses.replace(server, policy=named)


def repeating_options(
    backend: str, url: str | None, load: LoadSpec, client: ClientSpec | None, server: EngineConfig
) -> dict[str, Any]:
    """The options of ``fgbench run`` that repeat a run, for its folder's spec.toml.

    ``client``: None for a simulation.
    """
    found = {"backend": backend, "url": url, **options_of(load), **(options_of(client) if client else {})}
    del found["results"]
    if url is not None:
        return found | {"model": changed(server).get("model"), "tokenizer": server.tokenizer}
    return found | options_of(with_policy(server, backend))


def ensure_weights(server: EngineConfig, console: Console) -> None:
    """Pulls a catalog model that is not here yet, in a process of its own: converting needs much memory."""
    from fgbench.backends.backend import BackendError
    from fgengine.model.store import folder_of

    if server.use_dummy_weights or folder_of(server.model) is not None:
        return
    _require_memory(server)
    console.print(f"The weights of {server.model} are not here yet: pulling them.", highlight=False)
    if subprocess.run([sys.executable, "-m", "fgbench", "models", "pull", server.model]).returncode != 0:
        raise BackendError(f"could not pull {server.model}; with --use-dummy-weights no weights are needed")


def _require_memory(server: EngineConfig) -> None:
    """Raises ValueError for a model that does not fit into free memory, before it is downloaded.

    Asked in a process of its own: torch has no place in the load generator.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from fgengine.model.catalog import shape_of

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_require_memory_here, server, shape_of(server.model)).result()


def _require_memory_here(config: EngineConfig, shape: ModelShape) -> None:
    from fgengine.execution.machine import require_memory

    require_memory(config, shape)
