"""``fgbench watch``: a running server, live."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fgbench.exit_codes import FAILED

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.live.watching import Watch


def watch(
    url: Annotated[str, typer.Argument(help="Where the server is.")] = "http://127.0.0.1:10000",
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600.0, help="Seconds between two looks at the server.")
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, an interval apart, print the panel and end.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a line: all of /stats, and rates per second.")
    ] = False,
) -> None:
    """Watch a running server: who runs and who waits, jobs per MLFQ level, KV memory, swaps, tokens a second.

    Says so when KV memory is under pressure (nothing new starts), and for how much of the time the device has
    nothing to run because every request waits for a copy.

    Shows everything of a fastgen server, and what a vLLM server tells. It only asks; a question costs the
    server a message between two steps. Where the output is no terminal a line is printed at each look.

    Example, in two terminals:

        fgbench serve --policy sj-mlfq --max-batch-size 16
        fgbench watch http://127.0.0.1:10000

    Ends with Ctrl-C (exit code 130), or with 1 when the server has gone.
    """
    from rich.console import Console

    from fgbench.backends.probe import StatsError, base_url
    from fgbench.live.watching import Watch, reader

    address = base_url(url)
    console = Console()
    watched = Watch(address, reader(address), interval)
    try:
        if once:
            _once(watched, console, as_json)
        elif console.is_terminal and not console.is_dumb_terminal and not as_json:
            _panel(watched, console)
        else:
            _lines(watched, as_json)
    except StatsError as error:
        _stop(str(error))


def _once(watched: Watch, console: Console, as_json: bool) -> None:
    for look in range(2):
        if look:
            time.sleep(watched.meter.interval)
        watched.tick()
        if watched.trouble:
            _stop(watched.trouble)
    if as_json:
        print(json.dumps(watched.json()))
    else:
        console.print(watched.panel(height=1000))


def _lines(watched: Watch, as_json: bool) -> None:
    for _ in _ticks(watched):
        if as_json and not watched.trouble:
            print(json.dumps(watched.json()), flush=True)
        elif not as_json:
            print(f"{time.strftime('%H:%M:%S')} {watched.line()}", flush=True)


def _panel(watched: Watch, console: Console) -> None:
    """On a screen of its own, so that no change of the window's size leaves pieces behind; the last panel
    is left in the terminal."""
    from rich.live import Live

    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            for _ in _ticks(watched):
                live.update(watched.panel(), refresh=True)
    finally:
        if watched.meter.snapshot is not None:
            console.print(watched.panel())


def _ticks(watched: Watch) -> Iterator[None]:
    """After each look at the server, for ever."""
    while True:
        due = time.monotonic() + watched.meter.interval
        watched.tick()
        yield
        time.sleep(max(0.0, due - time.monotonic()))


def _stop(sentence: str) -> NoReturn:
    typer.echo(f"fgbench: {sentence}", err=True)
    raise typer.Exit(FAILED)
