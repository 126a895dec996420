"""``fgbench watch``: shows a running server live."""

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
    url: Annotated[str, typer.Argument(help="URL of the server.")] = "http://127.0.0.1:10000",
    interval: Annotated[float, typer.Option(min=0.1, max=3600.0, help="Seconds between two updates.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Read the server twice, one interval apart; print the panel; end.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line: /stats, and rates per second.")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key of the server. Default: $FGBENCH_API_KEY, else $OPENAI_API_KEY, if the server is on "
            "this machine or has https."
        ),
    ] = None,
) -> None:
    """Show a running server live: queues, KV memory, offloads, tokens per second.

    Shows running and waiting requests, and the requests in each MLFQ level.
    Reports if the server is short of KV memory, so that no new request starts.
    Reports the share of time in which the device is idle because every request
    waits for a KV copy.

    A fastgen server reports all of this, a vLLM server a part of it. Watching
    costs the server one message between two steps. If the output is not a
    terminal, one line is printed per update.

    Example, in two terminals:

        fgbench serve --policy sj-mlfq --max-batch-size 16
        fgbench watch http://127.0.0.1:10000

    It ends with Ctrl-C (exit code 130), or when the server no longer answers
    (exit code 1).
    """
    from rich.console import Console

    from fgbench.backends.probe import StatsError, ask_with, base_url
    from fgbench.live.watching import Watch, reader
    from fgbench.spec.client import ClientSpec

    address = base_url(url)
    ask_with(address, ClientSpec(api_key=api_key).access.with_key_for(address))
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
    """Show the panel on the alternate screen, and at the end print the last panel on the normal screen.

    On the alternate screen, a change of the window's size leaves no remains.
    """
    from rich.live import Live

    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            for _ in _ticks(watched):
                live.update(watched.panel(), refresh=True)
    finally:
        if watched.meter.snapshot is not None:
            console.print(watched.panel())


def _ticks(watched: Watch) -> Iterator[None]:
    """Read the server once per interval, without end; yield after each reading."""
    while True:
        due = time.monotonic() + watched.meter.interval
        watched.tick()
        yield
        time.sleep(max(0.0, due - time.monotonic()))


def _stop(sentence: str) -> NoReturn:
    typer.echo(f"fgbench: {sentence}", err=True)
    raise typer.Exit(FAILED)
