"""``fgbench models``: lists the models that the engine can run, and downloads their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.cli.printing import say

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    add_completion=False,
    help="List the models that fgbench knows by name, and download weights.\n\n"
    "Example: fgbench models pull smollm2-135m",
    no_args_is_help=True,
)


@app.command("list")
def list_models() -> None:
    """List the models: size, KV bytes per token, whether weights are downloaded.

    Example: fgbench models list
    """
    from rich.console import Console

    console = Console()
    console.print(_table())
    say(
        console,
        "Lengths are in tokens, KV sizes are for bfloat16. Every model runs without a download if you give "
        "--use-dummy-weights. `fgbench models pull` downloads weights from the Hugging Face hub. "
        "You can give the path of a Hugging Face folder instead of a name.",
    )


@app.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="A name from `fgbench models list`.")]) -> None:
    """Download a model's weights into your cache (FGBENCH_CACHE).

    The weights are checked by SHA-256.

    Example: fgbench models pull smollm2-135m
    """
    from rich.console import Console

    from fgengine.model.store import pull

    console = Console()
    with console.status(f"Pulling {name}"):
        folder = pull(name, lambda line: say(console, line))
    say(console, f"{name} is in {folder}")


def _table() -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from fgengine.model.catalog import CATALOG
    from fgengine.model.store import folder_of

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)  # fits 80 columns
    table.add_column("name", no_wrap=True)
    table.add_column("family", no_wrap=True)
    for heading in ("size", "layers x\nhidden", "heads\n/ KV", "max\nlength", "KV bytes\n/ token"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    for entry in CATALOG.values():
        shape = entry.shape
        if folder_of(entry.name) is not None:
            weights = "[green]pulled[/]"
        else:
            weights = "can be pulled" if entry.weights is not None else "shape only"
        table.add_row(
            entry.name,
            shape.family,
            _count(shape.num_parameters),
            f"{shape.num_layers} x {shape.hidden_size}",
            f"{shape.num_heads} / {shape.num_kv_heads}",
            f"{shape.max_position:,}",
            f"{shape.kv_bytes_per_token(2):,}",
            weights,
        )
    return table


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"
