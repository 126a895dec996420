"""Makes the backend that a user chose."""

from __future__ import annotations

from fgbench.backends.attached import Attached
from fgbench.backends.backend import Backend
from fgbench.backends.fastgen import FastGen
from fgbench.spec.access import OPEN, Access
from fgbench.spec.backend import FASTSERVE, VLLM_CHUNKED, BackendSpec
from fgengine.settings import changed


def backend_of(
    spec: BackendSpec,
    *,
    port: int | None = None,
    alone: bool = False,
    replicas: int = 1,
    router: str = "round-robin",
    access: Access = OPEN,
) -> Backend:
    """Make the backend that ``spec`` describes.

    Args:
        port: Port of a started server; None: any free one.
        alone: Start no load while a running server has other requests.
        replicas, router: Settings of a simulation.
        access: How a running server is reached: headers such as a key, and TLS.

    Raises:
        ValueError: no server would start with these settings, vLLM is not installed, or a simulation has no
            profile.
    """
    if spec.simulated:
        from fgbench.backends.simulated import Simulated, find_profile

        profile = find_profile(spec.server)
        return Simulated(spec.server, profile, replicas=replicas, router=router, name=spec.table_name)
    if spec.kind == "vllm":
        from fgbench.backends.vllm import Vllm

        return Vllm(
            spec.server,
            chunked=spec.name == VLLM_CHUNKED,
            start=spec.start,
            given=spec.given,
            own=spec.own,
            passed=spec.arguments,
            port=port,
            name=spec.table_name,
        )
    if spec.command is not None:
        from fgbench.backends.command import Command

        cores = spec.start.core_numbers
        return Command(spec.name, spec.command, model=spec.server.model, cores=cores, port=port)
    if spec.url is None:
        return FastGen(spec.server, port=port, cores=spec.start.core_numbers, name=spec.table_name)
    return Attached(
        spec.url,
        name=spec.table_name,
        model=spec.server.model if "model" in changed(spec.server) else None,
        alone=alone,
        endpoint="generate" if spec.name == FASTSERVE else "completions",
        access=access,
    )


def why_missing(spec: BackendSpec) -> str | None:
    """Return why the program of a backend cannot be started on this machine; None if it is here.

    Only vLLM is asked for: without it, a comparison of several backends can go on with the others.
    """
    if spec.kind != "vllm":
        return None
    from fgbench.backends.vllm_install import find_vllm

    try:
        find_vllm(spec.start.vllm_python)
    except ValueError as error:
        return str(error)
    return None
