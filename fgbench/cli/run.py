"""``fgbench run``: one backend, one load, one run folder."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fgbench.cli.load_options import ClientOptions, LoadOptions
from fgbench.cli.option_groups import takes_options
from fgbench.cli.options import ServerOptions

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.backends.backend import Backend
    from fgbench.results.run import Run

FAILED, TOO_MANY_ERRORS, CLIENT_LIMIT, INTERRUPTED = 1, 3, 4, 130
CLIENT_SIDE_OPTIONS = ("--model", "--tokenizer")
"""Of the server's options, those that mean something to a server that runs already."""


def _backend_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Backend")


@takes_options
def run(
    load: LoadOptions,
    client: ClientOptions,
    server: ServerOptions,
    backend: Annotated[
        str,
        _backend_option(
            "fastgen (sj-mlfq), fastgen-POLICY; simulated (no machine but a profile), simulated-POLICY.",
            "--backend",
        ),
    ] = "fastgen",
    url: Annotated[
        str | None, _backend_option("Measure a running OpenAI-compatible server instead.", "--url")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Start the server here; default: a free port.",
            min=1,
            max=65535,
            rich_help_panel="Backend",
        ),
    ] = None,
) -> None:
    """Benchmark one backend: start it (or attach to --url), send a Poisson load, print the figures.

    Example: SmolLM2 under skip-join MLFQ, then FCFS on the very same requests:

        fgbench run --rate 2.5 --num-prompts 150
        fgbench run --rate 2.5 --num-prompts 150 --backend fastgen-fcfs

    The server's own options (--max-batch-size 16, --num-device-blocks 400, ...) are passed on to it.
    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many errors, 4 the client was the limit,
    130 interrupted.
    """
    from rich.console import Console

    from fgbench.backends.backend import BackendError
    from fgbench.backends.fastgen import SIMULATED
    from fgbench.benchmark import run_benchmark
    from fgbench.client.display import display_for

    console = Console()
    display = display_for(console)
    if backend.partition("-")[0] == SIMULATED:
        from fgbench.cli.simulate import simulate_load

        if url is not None or port is not None or client.endpoint is not None:
            raise ValueError("--url, --port and --endpoint are a server's; a simulation has none")
        simulate_load(with_policy(server, backend), load, console)
        return
    system, endpoint = _system(server, backend, url, port)
    wanted = load.to_load(client, endpoint)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: nothing is left running
    try:
        if system.policy is not None:
            _ensure_weights(server, console)
        done = run_benchmark(
            system, load.to_dataset(server, display.report), wanted, results=load.results, display=display
        )
    except BackendError as error:
        _stop(console, str(error), FAILED)
    except KeyboardInterrupt:
        _stop(console, "Interrupted before the load began.", INTERRUPTED)
    conclude(done, console, load.max_error_rate)


def conclude(done: Run, console: Console, max_error_rate: float) -> None:
    """Prints the figures and ends with the exit code they deserve."""
    from fgbench.benchmark import client_was_the_limit, too_many_errors
    from fgbench.metrics.summary import Summary
    from fgbench.report.tables import summary_table

    summary = Summary.from_dict(done.info["summary"])
    workload = done.info["workload"]
    system = f"{done.info['backend']['name']}, {done.info['model']}"
    title = f"{system}, {workload['dataset']}, {float(workload['rate']):g}/s"
    console.print(summary_table(title, summary))
    console.print(f"run folder: {done.path}", soft_wrap=True, highlight=False)
    if done.status == "interrupted":
        planned = workload["num_prompts"]
        _stop(
            console,
            f"Interrupted: {len(done.records)} of {planned} requests had ended and are kept.",
            INTERRUPTED,
        )
    if done.status == "failed":
        _stop(console, str(done.info["error"]), FAILED)
    if errors := too_many_errors(summary, max_error_rate):
        _stop(console, errors, TOO_MANY_ERRORS)
    if limit := client_was_the_limit(summary):
        _stop(console, limit, CLIENT_LIMIT)


def _system(server: ServerOptions, backend: str, url: str | None, port: int | None) -> tuple[Backend, str]:
    """The system under test and the endpoint it is spoken to by, where the user names none.

    ``--backend fastserve --port N`` is the published client's way of naming a server that runs already.
    """
    from fgbench.backends.attached import Attached
    from fgbench.backends.fastgen import FastGen

    if backend == "fastserve" and url is None:
        if port is None:
            raise ValueError("--backend fastserve measures a running server: say where with --port or --url")
        url = f"http://127.0.0.1:{port}"
    elif url is not None and port is not None:
        raise ValueError("--port is for a server to be started; with --url put the port into the URL")
    if url is not None:
        argv = server.to_argv()
        if wrong := [a for a in argv if a.startswith("--") and a not in CLIENT_SIDE_OPTIONS]:
            raise ValueError(f"{wrong[0]} is the server's, and with --url the server runs already")
        model = server.model if "--model" in argv else None
        if backend == "fastserve":
            return Attached(url, name=backend, model=model), "generate"
        return Attached(url, name="openai" if backend == "fastgen" else backend, model=model), "completions"
    return FastGen(with_policy(server, backend), port=port), "completions"


def with_policy(server: ServerOptions, backend: str) -> ServerOptions:
    """The policy in the backend's name, where it has one. Raises ValueError where --policy is another."""
    from fgbench.backends.fastgen import policy_of

    named = policy_of(backend)
    if named is None:
        return server
    if server.policy is not None and server.effective_policy != named:
        raise ValueError(f"--backend {backend} and --policy {server.policy} contradict each other")
    return dataclasses.replace(server, policy=named)


def _ensure_weights(server: ServerOptions, console: Console) -> None:
    """Pulls a catalog model that is not here yet, in a process of its own: converting needs much memory."""
    from fgbench.backends.backend import BackendError
    from fgengine.model.store import folder_of

    if server.use_dummy_weights or folder_of(server.model) is not None:
        return
    console.print(f"The weights of {server.model} are not here yet: pulling them.", highlight=False)
    if subprocess.run([sys.executable, "-m", "fgbench", "models", "pull", server.model]).returncode != 0:
        raise BackendError(f"could not pull {server.model}; with --use-dummy-weights no weights are needed")


def _stop(console: Console, sentence: str, code: int) -> NoReturn:
    console.print(sentence, style="bold red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
