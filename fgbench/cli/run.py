"""``fgbench run``: measures one backend under one load and saves the result in a run folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from fgbench.cli.backend_option import parse_backend
from fgbench.cli.flags import ConfigFile, given, takes_options
from fgbench.cli.printing import say
from fgbench.spec.backend import FASTGEN, FASTSERVE, BackendSpec
from fgbench.spec.client import ClientSpec
from fgbench.spec.load import LoadSpec
from fgbench.spec.start import StartSpec
from fgengine.config import EngineConfig
from fgengine.settings import described

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    from rich.console import Console

    from fgbench.backends.backend import Backend
    from fgbench.results.run import Run


@takes_options
def run(
    load: LoadSpec,
    client: ClientSpec,
    server: EngineConfig,
    start: StartSpec,
    context: typer.Context,
    backend: Annotated[
        str,
        typer.Option(
            help="fastgen (with sj-mlfq) or fastgen-POLICY; simulated or simulated-POLICY, which only need a "
            "profile; vllm or vllm-chunked, which 'fgbench backends' finds, with options of their own: 'vllm "
            "--max-num-seqs 256'; or 'NAME=command: COMMAND' with {model} and {port}. NAME=BACKEND gives it "
            "another name in tables."
        ),
    ] = FASTGEN,
    url: Annotated[
        str | None, typer.Option(help="Measure the OpenAI-compatible server that runs at this URL.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name in tables. Two servers measured at one URL, one after the other, need two names. "
            "Default: the backend, or the host and port of --url.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port of the server to start. Default: a free one.",
            min=1,
            max=65535,
            rich_help_panel="Client",
        ),
    ] = None,
) -> None:
    """Measure one server under load.

    Starts the server, or uses the one at --url; sends requests; prints the figures.

    Example: measure SmolLM2 with skip-join MLFQ, then with FCFS and the same requests:

        fgbench run --rate 2.5 --num-prompts 150
        fgbench run --rate 2.5 --num-prompts 150 --backend fastgen-fcfs

    Measure vLLM on the same cores; then any other server that a command starts:

        fgbench run --rate 2.5 --num-prompts 150 --backend vllm --cores 0-1
        fgbench run --rate 2.5 --num-prompts 150 --cores 0-1 \\
            --backend "llama=command: llama-server -m model.gguf --port {port}"

    Measure two servers that ran at one URL, one after the other:

        fgbench run --rate 2.5 --url http://127.0.0.1:8000 --name vllm-0.10
        fgbench run --rate 2.5 --url http://127.0.0.1:8000 --name vllm-0.11

    Requests arrive by a Poisson process. Other arrivals: --arrivals uniform, --cv 2 (gamma), --burst-size 8,
    --rate-to 5 (a ramp that starts at --rate), --trace AzureLLMInferenceTrace_conv.csv.gz --speedup 2, and
    --concurrency 16 (a closed loop).

    Options of the server, such as --max-batch-size 16, are passed to the server. The run folder saves all
    options. To repeat a run: fgbench run --config results/RUN/spec.toml

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many errors, 4 the client was the limit,
    130 interrupted.
    """
    from fgbench.backends.named import backend_of

    if backend == FASTSERVE and url is None:
        if port is None:
            raise ValueError(
                "--backend fastserve needs a running server: give its place with --port or --url"
            )
        url, port = f"http://127.0.0.1:{port}", None
    chosen = given(context)
    spec = spec_of(backend if "backend" in chosen else None, url, name, server, start, chosen)
    if spec.url is not None and port is not None:
        raise ValueError("--port does not work with --url: write the port in the URL")
    if spec.simulated and (url is not None or port is not None):
        raise ValueError("--url and --port do not work with a simulation: leave them out")
    if spec.simulated and client.of_a_server:
        raise ValueError(f"{client.of_a_server} does not work with a simulation: leave it out")
    if spec.simulated:
        load.check_simulated()
    if client.needs_url and spec.url is None:
        raise ValueError(f"{client.needs_url} needs a running server: give its place with --url")
    measure(
        lambda: backend_of(spec, port=port, access=client.access),
        load,
        client,
        spec.server,
        options=spec.repeating_options(load, client),
    )


def spec_of(
    backend: str | None,
    url: str | None,
    name: str | None,
    server: EngineConfig,
    start: StartSpec,
    given: Collection[str],
) -> BackendSpec:
    """Return the one backend of a run.

    Args:
        backend: Its name, with its own options, or its name in tables if ``url`` is given. None: not given.
        url: Of a running server.
        name: Its name in tables. None: not given.
        given: Names of the options that the user gave; those of the server are for this backend alone.

    Raises ValueError if options contradict each other or do not apply.
    """
    own = frozenset(one.name for one in described(EngineConfig) if one.name in given)
    if url is not None:
        return BackendSpec(
            name=backend or "",
            title=name or "",
            url=url,
            server=server,
            start=start,
            policy_given="policy" in own,
        )
    spec = parse_backend(backend or FASTGEN, server, start, given=own, alone=True)
    return replace(spec, title=name, label=name) if name else spec


def measure(
    make: Callable[[], Backend],
    load: LoadSpec,
    client: ClientSpec,
    server: EngineConfig,
    *,
    options: Mapping[str, Any],
) -> None:
    """Make a backend, measure it, print the figures, and end the program with the run's exit code.

    Args:
        server: Its model or tokenizer counts the tokens of texts.
        options: The options that repeat the run, for its spec.toml.
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
    """Print the run's figures. End the program with the run's exit code if it is not 0."""
    from fgbench.exit_codes import DONE
    from fgbench.exit_status import exit_status_of
    from fgbench.metrics.summary import Summary
    from fgbench.report.run_tables import run_table

    console.print(run_table(done.info, Summary.from_dict(done.info["summary"])))
    say(console, f"run folder: {done.path}")
    if (status := exit_status_of(done.info, max_error_rate)).code != DONE:
        _end(console, status.sentence, status.code)


def _end(console: Console, sentence: str, code: int) -> None:
    say(console, sentence, "bold red")
    raise typer.Exit(code)
