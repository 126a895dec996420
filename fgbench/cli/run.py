"""``fgbench run``: one backend, one load, one run folder."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fgbench.cli.options import ServerOptions, takes_server_options

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.backends.backend import Backend
    from fgbench.results.run import Run
    from fgbench.workload.datasets import Dataset

FAILED, TOO_MANY_ERRORS, CLIENT_LIMIT, INTERRUPTED = 1, 3, 4, 130
CLIENT_SIDE_OPTIONS = ("--model", "--tokenizer")
"""Of the server's options, those that mean something to a server that runs already."""


def _backend_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Backend")


def load_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Load")


@takes_server_options
def run(
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
    endpoint: Annotated[
        str | None,
        _backend_option(
            "completions (OpenAI's) or generate (FastServe's); default: completions.", "--endpoint"
        ),
    ] = None,
    rate: Annotated[
        float, load_option("Requests per second; inf: all at once.", "--rate", "--request-rate")
    ] = 2.5,
    num_prompts: Annotated[int, load_option("Requests to measure.", "--num-prompts")] = 100,
    dataset: Annotated[
        str | None,
        load_option("sharegpt-lengths (default), sharegpt, synthetic; or a file.", "--dataset"),
    ] = None,
    dataset_name: Annotated[
        str | None, load_option("What a file given by --dataset holds.", "--dataset-name")
    ] = None,
    dataset_path: Annotated[
        Path | None, load_option("Read the dataset from this file.", "--dataset-path")
    ] = None,
    input_len: Annotated[
        str, load_option("Prompt tokens of synthetic: 512, or 16-512.", "--input-len")
    ] = "512",
    output_len: Annotated[str, load_option("Output tokens of synthetic.", "--output-len")] = "128",
    process_name: Annotated[str, load_option("Arrivals: poisson.", "--process-name")] = "poisson",
    seed: Annotated[
        int, load_option("Same seed: same prompts, lengths and arrivals for every backend.", "--seed")
    ] = 0,
    users: Annotated[
        int, load_option("Share the requests out between so many users, the first sends most.", "--users")
    ] = 1,
    warmup: Annotated[int, load_option("Unmeasured requests sent before.", "--warmup")] = 4,
    request_timeout: Annotated[
        float, load_option("Seconds until an unfinished answer is an error.", "--request-timeout")
    ] = 3600.0,
    max_error_rate: Annotated[
        float, load_option("Share of failed requests above which the exit code is 3.", "--max-error-rate")
    ] = 0.01,
    results: Annotated[Path, load_option("Where run folders go.", "--results")] = Path("results"),
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
    from fgbench.benchmark import Load, run_benchmark
    from fgbench.client.display import display_for

    if process_name not in ("poisson", "possion"):  # the second is how the published scripts spell it
        raise ValueError(f"--process-name: arrivals are poisson, not {process_name!r}")
    if not 0.0 <= max_error_rate <= 1.0:
        raise ValueError(f"--max-error-rate is a share between 0 and 1, not {max_error_rate}")
    name, path = dataset_of(dataset, dataset_name, dataset_path)
    console = Console()
    display = display_for(console)

    def samples() -> Dataset:
        return samples_of(server, name, path, input_len, output_len, display.report)

    if backend.partition("-")[0] == SIMULATED:
        from fgbench.cli.simulate import simulate_load

        if url is not None or port is not None or endpoint is not None:
            raise ValueError("--url, --port and --endpoint are a server's; a simulation has none")
        load = Load(rate=rate, num_prompts=num_prompts, seed=seed, users=users)
        simulate_load(with_policy(server, backend), samples, load, results, max_error_rate, console)
        return
    system, default_endpoint = _system(server, backend, url, port)
    load = Load(
        rate=rate,
        num_prompts=num_prompts,
        seed=seed,
        num_warmup=warmup,
        endpoint=endpoint or default_endpoint,
        request_timeout=request_timeout,
        users=users,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: nothing is left running
    try:
        if system.policy is not None:
            _ensure_weights(server, console)
        done = run_benchmark(system, samples(), load, results=results, display=display)
    except BackendError as error:
        _stop(console, str(error), FAILED)
    except KeyboardInterrupt:
        _stop(console, "Interrupted before the load began.", INTERRUPTED)
    conclude(done, console, max_error_rate)


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


def dataset_of(dataset: str | None, dataset_name: str | None, path: Path | None) -> tuple[str, Path | None]:
    """Name and file. ``--dataset FILE --dataset-name NAME`` is the published client's spelling."""
    if dataset is not None and Path(dataset).is_file():
        if path is not None:
            raise ValueError("--dataset names a file already; leave out --dataset-path")
        path, dataset = Path(dataset), None
        if dataset_name is None:
            dataset_name = "sharegpt-lengths" if ".csv" in path.suffixes else "sharegpt"
    if dataset is not None and dataset_name is not None and dataset != dataset_name:
        raise ValueError(f"--dataset {dataset} and --dataset-name {dataset_name} contradict each other")
    return dataset or dataset_name or "sharegpt-lengths", path


def samples_of(
    server: ServerOptions,
    name: str,
    path: Path | None,
    input_len: str,
    output_len: str,
    report: Callable[[str], None],
) -> Dataset:
    """The dataset, its tokens counted by the model's tokenizer where it is texts."""
    from fgbench.workload.load import load_dataset

    return load_dataset(
        name,
        path=path,
        tokenizer=lambda: _tokenizer_folder(server),
        input_len=input_len,
        output_len=output_len,
        report=report,
    )


def _ensure_weights(server: ServerOptions, console: Console) -> None:
    """Pulls a catalog model that is not here yet, in a process of its own: converting needs much memory."""
    from fgbench.backends.backend import BackendError
    from fgengine.model.store import folder_of

    if server.use_dummy_weights or folder_of(server.model) is not None:
        return
    console.print(f"The weights of {server.model} are not here yet: pulling them.", highlight=False)
    if subprocess.run([sys.executable, "-m", "fgbench", "models", "pull", server.model]).returncode != 0:
        raise BackendError(f"could not pull {server.model}; with --use-dummy-weights no weights are needed")


def _tokenizer_folder(server: ServerOptions) -> Path:
    from fgengine.model.store import tokenizer_folder

    if server.tokenizer is not None:
        return tokenizer_folder(server.tokenizer, False)
    return tokenizer_folder(server.model, server.use_dummy_weights)


def _stop(console: Console, sentence: str, code: int) -> NoReturn:
    console.print(sentence, style="bold red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
