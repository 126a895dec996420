"""``fgbench run``: one backend, one load, one run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.cli.flags import ConfigFile, given, takes_options
from fgbench.cli.printing import say
from fgbench.spec.backend import FASTGEN, FASTSERVE, BackendSpec
from fgbench.spec.load import ClientSpec, LoadSpec
from fgengine.config import EngineConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from rich.console import Console

    from fgbench.backends.backend import Backend
    from fgbench.results.run import Run


@takes_options
def run(
    load: LoadSpec,
    client: ClientSpec,
    server: EngineConfig,
    context: typer.Context,
    backend: Annotated[
        str,
        typer.Option(
            help="fastgen (sj-mlfq), fastgen-POLICY; simulated (no machine but a profile), simulated-POLICY."
        ),
    ] = FASTGEN,
    url: Annotated[
        str | None, typer.Option(help="Measure a running OpenAI-compatible server instead.")
    ] = None,
    config: ConfigFile = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Start the server here; default: a free port.", min=1, max=65535, rich_help_panel="Client"
        ),
    ] = None,
) -> None:
    """Benchmark one backend: start it (or attach to --url), load it, print the figures.

    Example: SmolLM2 under skip-join MLFQ, then FCFS on the very same requests:

        fgbench run --rate 2.5 --num-prompts 150
        fgbench run --rate 2.5 --num-prompts 150 --backend fastgen-fcfs

    Requests come by a Poisson process, or by --arrivals uniform, --cv 2 (gamma), --burst-size 8, --rate-to 5
    (a ramp from --rate), --trace AzureLLMInferenceTrace_conv.csv.gz --speedup 2, or in a closed loop,
    --concurrency 16.

    The server's own options (--max-batch-size 16, --num-device-blocks 400, ...) are passed on to it. A run's
    folder holds the options it really had: fgbench run --config results/RUN/spec.toml repeats it.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many errors, 4 the client was the limit,
    130 interrupted.
    """
    from fgbench.backends.named import backend_of

    if backend == FASTSERVE and url is None:
        if port is None:
            raise ValueError("--backend fastserve measures a running server: say where with --port or --url")
        url = f"http://127.0.0.1:{port}"
    elif url is not None and port is not None:
        raise ValueError("--port is for a server to be started; with --url put the port into the URL")
    spec = BackendSpec(name=backend, url=url, server=server, policy_given="policy" in given(context))
    if spec.simulated and (url is not None or port is not None or client.endpoint is not None):
        raise ValueError("--url, --port and --endpoint are a server's; a simulation has none")
    if client.headers and url is None:
        raise ValueError("--header and --api-key are for a server that runs already: say where with --url")
    measure(
        lambda: backend_of(spec, port=None if url is not None else port, headers=client.headers),
        load,
        client,
        server,
        options=spec.repeating_options(load, client),
    )


def measure(
    make: Callable[[], Backend],
    load: LoadSpec,
    client: ClientSpec,
    server: EngineConfig,
    *,
    options: Mapping[str, Any],
) -> None:
    """Makes a backend and measures it; prints the figures and ends with the exit code they deserve.

    ``server`` says by whose tokenizer texts are counted; ``options`` are those that repeat the run.
    """
    from rich.console import Console

    from fgbench import benchmark
    from fgbench.backends.backend import BackendError
    from fgbench.exit_codes import FAILED, INTERRUPTED
    from fgbench.live.display import display_for

    console = Console()
    display = display_for(console)
    backend = make()
    try:
        done = benchmark.measure(backend, load, client, server, display=display, options=options)
    except BackendError as error:
        _end(console, str(error), FAILED)
    except KeyboardInterrupt:
        _end(console, "Interrupted before the load began.", INTERRUPTED)
    else:
        conclude(done, console, load.max_error_rate)


def conclude(done: Run, console: Console, max_error_rate: float) -> None:
    """Prints the figures and ends with the exit code they deserve."""
    from fgbench.exit_codes import DONE
    from fgbench.exit_status import exit_status_of
    from fgbench.metrics.summary import Summary
    from fgbench.report.run_tables import run_table

    console.print(run_table(done.info, Summary.from_dict(done.info["summary"])))
    say(console, f"run folder: {done.path}")
    if (ending := exit_status_of(done.info, max_error_rate)).code != DONE:
        _end(console, ending.sentence, ending.code)


def _end(console: Console, sentence: str, code: int) -> None:
    say(console, sentence, "bold red")
    raise typer.Exit(code)
