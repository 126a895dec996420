"""``fgbench backends``: lists what can be measured here, with versions, and how to get what is missing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of the list of backends."""

    name: str
    summary: str
    available: bool
    version: str | None = None
    """The version that would be started; None: none is found."""
    where: str | None = None
    """Path of the Python that has it; None: it has no installation of its own."""
    how_to_get: str | None = None
    """What is missing and how to get it; None: nothing."""


def backends(
    vllm_python: Annotated[
        str | None, typer.Option(help="The Python that has vLLM installed, instead of $FGBENCH_VLLM_PYTHON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the backends: what can be started here, with versions, and how to get what is missing.

    Nothing is imported or started. Two kinds are not in the list: a server that runs already (--url), and any
    other server that a command starts (--backend 'NAME=command: ...').

    Example: fgbench backends --vllm-python vllm-env/bin/python
    """
    found = list_backends(vllm_python)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(found))
    console.print(
        "Any other server: --url http://HOST:PORT if it runs already, or --backend 'NAME=command: PROGRAM "
        "...' with {model} and {port}.",
        highlight=False,
        markup=False,
    )


def list_backends(vllm_python: str | None = None) -> list[Listed]:
    """Return the backends that have a name. ``vllm_python``: path of the Python that has vLLM."""
    return [_fastgen(), _simulated(), *_vllm(vllm_python)]


def _fastgen() -> Listed:
    from importlib.metadata import version

    from fgengine.extras import MissingPackage, require_package

    listed = Listed(
        "fastgen", "FastGen, this project's engine; also fastgen-POLICY", True, version("fgbench")
    )
    try:
        require_package("torch", "FastGen's engine")
    except MissingPackage as missing:
        return Listed(listed.name, listed.summary, False, how_to_get=str(missing))
    return listed


def _simulated() -> Listed:
    from importlib.metadata import version

    from fgengine.profile_cache import profiles_folder

    summary = "FastGen's scheduler on a virtual clock; also simulated-POLICY"
    missing = None
    if not any(profiles_folder().glob("*.json")):
        missing = "needs step times: use 'fgbench profile', --profile FILE or --device-spec a100-40gb"
    return Listed("simulated", summary, missing is None, version("fgbench"), how_to_get=missing)


def _vllm(python: str | None) -> list[Listed]:
    from fgbench.backends.vllm_install import find_vllm

    summaries = {"vllm": "vLLM without chunked prefill", "vllm-chunked": "vLLM with chunked prefill"}
    try:
        vllm = find_vllm(python)
    except ValueError as error:
        return [Listed(name, text, False, how_to_get=str(error)) for name, text in summaries.items()]
    version = f"{vllm.version} ({vllm.build})"
    return [Listed(name, text, True, version, vllm.python) for name, text in summaries.items()]


def _table(found: list[Listed]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("version")
    table.add_column("what it is, and what is missing")
    said: set[str] = set()
    for one in found:
        text = Text(one.summary)
        for more, style in ((one.where, "dim"), (one.how_to_get, "yellow")):
            if more is not None:
                text.append("\n" + ("as above" if more in said else more), style=style)
                said.add(more)
        version = Text(one.version or "-") if one.available else Text("missing", style="yellow")
        table.add_row(one.name, version, text)
    return table
