"""Backends by name or URL: ``fastgen-fcfs``, ``simulated``, ``vllm=http://127.0.0.1:8000``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fgbench.spec.files import options_of
from fgbench.spec.load import ClientSpec, LoadSpec
from fgengine.config import EngineConfig
from fgengine.settings import changed, described

FASTGEN, SIMULATED, FASTSERVE = "fastgen", "simulated", "fastserve"
CLIENT_SIDE_OPTIONS = ("model", "tokenizer")
"""The server's options that also apply to a running server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """The backend that a user chose, with its settings.

    Raises:
        ValueError: no backend has this name, or ``server`` has another policy than the name.
    """

    name: str = FASTGEN
    """Such as ``fastgen-fcfs`` or ``simulated``; for a server at ``url``, its name in tables."""
    url: str | None = None
    """URL of a running server; None: the server is started, or simulated."""
    server: EngineConfig = field(default_factory=EngineConfig)
    """Settings of the server that is started or simulated."""
    label: str = ""
    """The text that the user gave; if empty, it becomes the name."""
    policy_given: bool = False
    """Whether the user gave the policy; then it must match the name even if it is the default policy."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if self.url is not None:
            if wrong := servers_own(self.server):
                raise ValueError(
                    f"{wrong[0]} is for a server that is started, but with --url the server runs already: "
                    "leave it out"
                )
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

    @property
    def simulated(self) -> bool:
        """Whether the backend is a simulation."""
        return self.url is None and self.name.partition("-")[0] == SIMULATED

    def repeating_options(self, load: LoadSpec, client: ClientSpec) -> dict[str, Any]:
        """Return the options of ``fgbench run`` that repeat the run, for spec.toml."""
        found = {"backend": self.name, "url": self.url, **options_of(load)}
        found |= {} if self.simulated else options_of(client)
        del found["results"]
        if self.url is not None:
            return found | {"model": changed(self.server).get("model"), "tokenizer": self.server.tokenizer}
        return found | options_of(self.server)


def name_and_url(word: str) -> tuple[str, str | None]:
    """Split a URL, ``NAME=URL`` or a name into (name, URL or None).

    Raises ValueError if a pair lacks the name or the URL.
    """
    if word.startswith(("http://", "https://")):
        return FASTGEN, word
    name, equals, url = word.partition("=")
    if not equals:
        return word, None
    if not name or not url:
        raise ValueError(
            f"--backend {word!r} lacks a name or a URL: write it like vllm=http://127.0.0.1:8000"
        )
    return name, url


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
            "simulated-POLICY, or a running server with --url"
        )
    return policy


def servers_own(server: EngineConfig) -> list[str]:
    """Return the flags of the given options that do not apply to a running server."""
    flags = {option.name: option.flag for option in described(EngineConfig)}
    return [flags[name] for name in changed(server) if name not in CLIENT_SIDE_OPTIONS]
