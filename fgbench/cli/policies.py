"""``fgbench policies``: lists the available scheduling policies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of the list of policies."""

    name: str
    summary: str = ""
    paper: str = ""
    needs: tuple[str, ...] = ()
    """``profile``, ``predictor``, both or none."""
    package: str | None = None
    """The installed package that provides the policy; None: built in."""
    error: str | None = None
    """Why the policy cannot be loaded; None: it can."""


def policies(
    classes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODULE:CLASS]...", help="Your own policies, listed last."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the scheduling policies: what they do, their paper, what they need.

    Built-in policies come first, then the policies of installed packages
    (entry-point group fgengine.policies). To use any other policy, give its
    class: --policy package.module:Class. docs/writing-a-policy.md shows how to
    write one.

    Example: fgbench policies my_policies:ShortestPrompt
    """
    found = list_policies(classes or ())
    if as_json:
        print(json.dumps([asdict(policy) for policy in found], indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(found))
    console.print(
        "profile: step times, measured when the server first needs them, or by `fgbench profile`. "
        "predictor: predicts output lengths; choose one with --predictor."
    )


def list_policies(classes: Sequence[str] = ()) -> list[Listed]:
    """Return every policy that has a name, then ``classes``.

    If a policy cannot be loaded, its ``error`` gives the reason.
    """
    from fgengine.scheduling.policy import installed_policies, policy_names

    installed = installed_policies()
    return [_listed(name, installed.get(name)) for name in (*policy_names(), *classes)]


def _listed(name: str, entry: EntryPoint | None) -> Listed:
    from fgengine.scheduling.policy import policy_class

    package = f"{entry.dist.name} {entry.dist.version}" if entry is not None and entry.dist else None
    try:
        policy = policy_class(name)
    except ValueError as error:
        return Listed(name, package=package, error=str(error))
    needs = {"profile": policy.needs_cost, "predictor": policy.needs_predictor}
    return Listed(
        name, policy.summary, policy.paper, tuple(need for need, needed in needs.items() if needed), package
    )


def _table(found: list[Listed]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what it does")
    table.add_column("paper")
    table.add_column("needs", no_wrap=True)
    for policy in found:
        summary = Text(policy.summary)
        if policy.error is not None:
            summary = Text(policy.error, style="red")
        if policy.package is not None:
            summary.append(f" (from {policy.package})", style="dim")
        table.add_row(policy.name, summary, policy.paper, "\n".join(policy.needs))
    return table
