"""A backend as a user names it: ``fastgen-fcfs``, ``simulated``, a URL, ``vllm=http://127.0.0.1:8000``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fgbench.spec.files import options_of
from fgbench.spec.load import ClientSpec, LoadSpec
from fgengine.config import EngineConfig
from fgengine.settings import changed, described

FASTGEN, SIMULATED, FASTSERVE = "fastgen", "simulated", "fastserve"
CLIENT_SIDE_OPTIONS = ("model", "tokenizer")
"""Of the server's options, those that mean something to a server that runs already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """Raises ValueError for a name that is no backend's, and for a policy other than the one in the name."""

    name: str = FASTGEN
    """``fastgen-fcfs``, ``simulated``, ... or what tables call a server at ``url``."""
    url: str | None = None
    server: EngineConfig = field(default_factory=EngineConfig)
    """What a server that is started, or simulated, is set to."""
    label: str = ""
    """As the user wrote it; empty: the name."""
    policy_given: bool = False
    """The user chose the policy, so that it counts even where it is the default."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if self.url is not None:
            if wrong := servers_own(self.server):
                raise ValueError(f"{wrong[0]} is the server's, and with --url the server runs already")
            return
        named = policy_of(self.name)
        if named is None:
            return
        if (self.policy_given or "policy" in changed(self.server)) and self.server.policy != named:
            raise ValueError(f"--backend {self.name} and --policy {self.server.policy} contradict each other")
        object.__setattr__(self, "server", replace(self.server, policy=named))

    @property
    def simulated(self) -> bool:
        return self.url is None and self.name.partition("-")[0] == SIMULATED

    def repeating_options(self, load: LoadSpec, client: ClientSpec) -> dict[str, Any]:
        """The options of ``fgbench run`` that send this backend the same load again, for spec.toml."""
        found = {"backend": self.name, "url": self.url, **options_of(load)}
        found |= {} if self.simulated else options_of(client)
        del found["results"]
        if self.url is not None:
            return found | {"model": changed(self.server).get("model"), "tokenizer": self.server.tokenizer}
        return found | options_of(self.server)


def name_and_url(word: str) -> tuple[str, str | None]:
    """Of a URL, ``NAME=URL``, or a name. Raises ValueError for half of a pair."""
    if word.startswith(("http://", "https://")):
        return FASTGEN, word
    name, equals, url = word.partition("=")
    if not equals:
        return word, None
    if not name or not url:
        raise ValueError(f"--backend {word!r}: a running server is named like vllm=http://127.0.0.1:8000")
    return name, url


def policy_of(name: str) -> str | None:
    """The policy in a backend's name: ``fcfs`` of ``fastgen-fcfs``; None of ``fastgen``, which has none.

    Raises ValueError for a name that is neither FastGen's nor a simulation's.
    """
    if name in (FASTGEN, SIMULATED):
        return None
    prefix, dash, policy = name.partition("-")
    if prefix not in (FASTGEN, SIMULATED) or not dash or not policy:
        raise ValueError(
            f"there is no backend {name!r}; there are fastgen, fastgen-fcfs, fastgen-mlfq, fastgen-srpt "
            "(fastgen-POLICY), simulated (simulated-POLICY), and any server by --url"
        )
    return policy


def servers_own(server: EngineConfig) -> list[str]:
    """Flags of the options that were set and mean nothing to a server that runs already."""
    flags = {one.name: one.flag for one in described(EngineConfig)}
    return [flags[name] for name in changed(server) if name not in CLIENT_SIDE_OPTIONS]
