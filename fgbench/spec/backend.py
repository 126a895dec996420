"""Backends by name, URL or command: ``fastgen-fcfs``, ``vllm``, ``vllm=http://127.0.0.1:8000``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from fgbench.spec.client import ClientSpec
from fgbench.spec.files import options_of
from fgbench.spec.load import LoadSpec
from fgbench.spec.start import StartSpec
from fgengine.config import EngineConfig
from fgengine.settings import changed, described

FASTGEN, SIMULATED, FASTSERVE = "fastgen", "simulated", "fastserve"
VLLM, VLLM_CHUNKED = "vllm", "vllm-chunked"
CLIENT_SIDE_OPTIONS = ("model", "tokenizer")
"""The server's options that also apply to a running server, and to one that a command starts."""
Kind = Literal["fastgen", "simulated", "vllm", "command", "url"]
START_OPTIONS: dict[Kind, tuple[str, ...]] = {
    "fastgen": ("cores",),
    "simulated": (),
    "vllm": ("cores", "vllm_preset", "vllm_python"),
    "command": ("cores",),
    "url": (),
}
"""The options of ``StartSpec`` that each kind of backend has."""
_COMMAND = re.compile(r"\s*(?P<name>[^\s=]*)=command:(?!\d+(?:/\S*)?\s*$)(?P<command>.*)", re.DOTALL)
"""``NAME=command:COMMAND``. A port and nothing else after the colon belongs to a host named ``command``."""
_HOST_AND_PORT = re.compile(r"[^/:]+:\d{1,5}(?:/\S*)?")
DEFAULT_POLICY = EngineConfig().policy


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """The backend that a user chose, with its settings.

    Raises:
        ValueError: no backend has this name, or ``server`` has another policy than the name, or an option
            does not apply to this backend.
    """

    name: str = FASTGEN
    """Such as ``fastgen-fcfs`` or ``simulated``; for a server at ``url`` or by ``command``, its name in
    tables. Empty for a server at ``url`` that the user gave no name."""
    title: str = ""
    """The name in tables that the user chose for another backend; empty: the backend's own."""
    url: str | None = None
    """URL of a running server; None: the server is started, or simulated."""
    server: EngineConfig = field(default_factory=EngineConfig)
    """Settings of the server that is started or simulated."""
    start: StartSpec = field(default_factory=StartSpec)
    """How the server is started."""
    command: tuple[str, ...] | None = None
    """Program and arguments that start a server of another kind."""
    arguments: tuple[str, ...] = ()
    """vLLM's own options, passed on as they are."""
    given: frozenset[str] = frozenset()
    """Names of the ``server`` options that the user gave for any backend, also with their default values."""
    own: frozenset[str] = frozenset()
    """Those of ``given`` that are for this backend alone."""
    label: str = ""
    """What a sweep calls it: the title, or the text that the user gave; if empty, it becomes the name."""
    policy_given: bool = False
    """Whether the user gave the policy; then it must match the name even if it is the default policy."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.title or self.name or self.table_name)
        self._check_start()
        if self.url is not None:
            if self.table_name.partition("-")[0] in (FASTGEN, SIMULATED):
                raise ValueError(
                    f"{self.table_name} is a name of our own engine, and the server at {self.url} may be "
                    "another one: give it another name, such as --name my-server or my-server=URL"
                )
            if wrong := servers_own(self.server):
                raise ValueError(
                    f"{wrong[0]} is for a server that is started, but with --url the server runs already: "
                    "leave it out"
                )
            return
        if self.kind == "command" and (wrong := _flags(self.own - {*CLIENT_SIDE_OPTIONS})):
            raise ValueError(
                f"{wrong[0]} means nothing for --backend {self.name}, which a command starts: write the "
                "server's own option into the command"
            )
        if self.kind not in ("fastgen", "simulated"):
            return
        policy = policy_of(self.name)
        if policy is None:
            return
        if (self.policy_given or "policy" in changed(self.server)) and self.server.policy != policy:
            raise ValueError(
                f"--backend {self.name} and --policy {self.server.policy} contradict each other: give only "
                "one of them"
            )
        object.__setattr__(self, "server", replace(self.server, policy=policy))

    def _check_start(self) -> None:
        """Raise ValueError for an option of the start that this kind of backend does not have."""
        for name in changed(self.start):
            if name not in START_OPTIONS[self.kind]:
                flag = "--" + name.replace("_", "-")
                what = "vLLM" if name.startswith("vllm") else "a server that is started"
                raise ValueError(f"{flag} is for {what}, not for --backend {self.label}: leave it out")

    @property
    def kind(self) -> Kind:
        """What the backend is."""
        return kind_of(self.name, self.url, self.command)

    @property
    def table_name(self) -> str:
        """The name in tables."""
        if self.url is not None:
            return self.title or self.name or _place(self.url)
        if self.kind in ("fastgen", "simulated"):
            return self.title or backend_name(self.kind, self.server.policy)
        return self.title or self.name

    @property
    def is_named(self) -> bool:
        """Whether the user chose the name in tables."""
        return bool(self.title) or self.kind == "command" or (self.kind == "url" and bool(self.name))

    @property
    def simulated(self) -> bool:
        """Whether the backend is a simulation."""
        return self.kind == "simulated"

    @property
    def started(self) -> bool:
        """Whether a server is started for it."""
        return self.kind not in ("simulated", "url")

    def repeating_options(self, load: LoadSpec, client: ClientSpec) -> dict[str, Any]:
        """Return the options of ``fgbench run`` that repeat the run, for spec.toml."""
        found = {"backend": self._text() or None, "url": self.url, **options_of(load)}
        found |= {} if self.simulated else options_of(client)
        del found["results"]
        found |= changed(self.start)
        server = options_of(self.server)
        if self.kind in ("url", "command"):
            model = self.server.model if self.kind == "command" else changed(self.server).get("model")
            return found | {"model": model, "tokenizer": self.server.tokenizer}
        if self.kind == "vllm":
            names = {"model", "tokenizer", *self.given}
            return found | {name: value for name, value in server.items() if name in names}
        return found | server

    def _text(self) -> str:
        """Return the value of ``--backend`` without the options that have an option of the verb."""
        if self.url is not None:
            return self.title or self.name
        if self.command is not None:
            return f"{self.title or self.name}=command: {shlex.join(self.command)}"
        name = f"{self.title}={self.name}" if self.title else self.name
        return shlex.join((name, *self.arguments)) if self.title or self.arguments else name


def _place(url: str) -> str:
    """Return the host and port of a URL, which may lack ``http://``."""
    return urlsplit(url if "://" in url else f"http://{url}").netloc or url


class BackendWord(NamedTuple):
    """The first word of ``--backend``."""

    title: str
    """NAME of ``NAME=BACKEND``; empty: none."""
    name: str
    """The backend; for a URL, NAME of ``NAME=URL``."""
    url: str | None
    """The URL of a running server; None: the word is a backend."""


def backend_name(kind: str, policy: str) -> str:
    """Return ``fastgen`` for the default policy, ``fastgen-fcfs`` for the policy fcfs."""
    return kind if policy == DEFAULT_POLICY else f"{kind}-{policy}"


def kind_of(name: str, url: str | None = None, command: Collection[str] | None = None) -> Kind:
    """Return what a backend is. Raises ValueError if there is none of this name."""
    if url is not None:
        return "url"
    if command is not None:
        return "command"
    if name in (VLLM, VLLM_CHUNKED):
        return "vllm"
    policy_of(name)
    return "simulated" if name.partition("-")[0] == SIMULATED else "fastgen"


def applicable(start: StartSpec, kind: Kind) -> StartSpec:
    """Return ``start`` with only those options that this kind of backend has."""
    return StartSpec(**{name: value for name, value in changed(start).items() if name in START_OPTIONS[kind]})


def name_and_command(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Split ``NAME=command: COMMAND`` into the name and the command's words; None if it is something else.

    Raises ValueError if the name or the command is missing or cannot be read.
    """
    match = _COMMAND.fullmatch(text)
    if match is None:
        return None
    example = "llama=command: llama-server -m model.gguf --port {port}"
    try:
        words = shlex.split(match["command"])
    except ValueError as error:
        raise ValueError(f"--backend {text!r} cannot be read: {error}") from None
    if not match["name"] or not words:
        raise ValueError(f"--backend {text!r} lacks a name or a command: write it like {example!r}")
    return match["name"], tuple(words)


def read_word(word: str) -> BackendWord:
    """Read ``BACKEND``, ``NAME=BACKEND``, a URL, or ``NAME=URL``.

    Raises ValueError if a pair lacks one of the two, or if what follows the name is neither.
    """
    if word.startswith(("http://", "https://")):
        return BackendWord("", "", word)
    name, equals, value = word.partition("=")
    if not equals:
        return BackendWord("", word, None)
    if not name or not value:
        raise ValueError(
            f"--backend {word!r} lacks a name or a backend: write it like vllm-16=vllm, or like "
            "vllm=http://127.0.0.1:8000"
        )
    if _is_url(value):
        return BackendWord("", name, value)
    kind_of(value)
    return BackendWord(name, value, None)


def _is_url(value: str) -> bool:
    """Whether the text after ``NAME=`` is a URL, perhaps without ``http://``; otherwise it is a backend."""
    if _HOST_AND_PORT.fullmatch(value) or "/" in value or value == "localhost":
        return True
    is_ours = value.partition("-")[0] in (FASTGEN, SIMULATED)  # a policy can be called module:Class
    return not is_ours and "." in value


def policy_of(name: str) -> str | None:
    """Return the policy in a backend's name: ``fcfs`` for ``fastgen-fcfs``, None for ``fastgen``.

    Raises ValueError if the name is neither FastGen's nor a simulation's.
    """
    if name in (FASTGEN, SIMULATED):
        return None
    prefix, dash, policy = name.partition("-")
    if prefix not in (FASTGEN, SIMULATED) or not dash or not policy:
        raise ValueError(
            f"there is no backend {name!r}: use fastgen, fastgen-POLICY (such as fastgen-fcfs), simulated, "
            "simulated-POLICY, vllm, vllm-chunked, 'NAME=command: ...', or the URL of a running server"
        )
    return policy


def servers_own(server: EngineConfig) -> list[str]:
    """Return the flags of the given options that do not apply to a running server."""
    return _flags(set(changed(server)) - {*CLIENT_SIDE_OPTIONS})


def _flags(names: Collection[str]) -> list[str]:
    """Return the flags of the engine's options with these names, in the order of the options."""
    return [option.flag for option in described(EngineConfig) if option.name in names]
