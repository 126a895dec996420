"""From what a user names to what is measured."""

from __future__ import annotations

from collections.abc import Mapping

from fgbench.backends.attached import Attached
from fgbench.backends.backend import Backend
from fgbench.backends.fastgen import FastGen
from fgbench.spec.backend import FASTGEN, FASTSERVE, BackendSpec
from fgengine.settings import changed


def backend_of(
    spec: BackendSpec,
    *,
    port: int | None = None,
    alone: bool = False,
    replicas: int = 1,
    router: str = "round-robin",
    headers: Mapping[str, str] | None = None,
) -> Backend:
    """The backend that ``spec`` names.

    Args:
        port: Of a server that is started; None: any free one.
        alone: No load begins while a server that runs already has other requests.
        replicas, router: Of a simulation.
        headers: Sent with every request to a server that runs already.

    Raises:
        ValueError: no such server would start, or a simulation has no profile to take step times from.
    """
    if spec.simulated:
        from fgbench.backends.simulated import Simulated, find_profile

        return Simulated(spec.server, find_profile(spec.server), replicas=replicas, router=router)
    if spec.url is None:
        return FastGen(spec.server, port=port)
    return Attached(
        spec.url,
        name="openai" if spec.name == FASTGEN else spec.name,
        model=spec.server.model if "model" in changed(spec.server) else None,
        alone=alone,
        endpoint="generate" if spec.name == FASTSERVE else "completions",
        headers=headers,
    )
