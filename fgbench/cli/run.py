"""``fgbench run``: one backend, one load, one run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fgbench.cli.flags import ConfigFile, given, takes_options
from fgbench.cli.systems import ensure_weights, repeating_options, system_of, with_policy
from fgbench.spec.load import ClientSpec, LoadSpec
from fgengine.config import EngineConfig

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.results.run import Run

FAILED, INTERRUPTED = 1, 130


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
    ] = "fastgen",
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
        simulated = with_policy(server, backend, "policy" in given(context))
        simulate_load(
            simulated, load, console, options=repeating_options(backend, None, load, None, simulated)
        )
        return
    system, endpoint = system_of(server, backend, url, port, policy_given="policy" in given(context))
    wanted = load.to_load(client, endpoint)
    try:
        if system.policy is not None:
            ensure_weights(server, console)
        done = run_benchmark(
            system,
            load.to_dataset(server, display.report),
            wanted,
            results=load.results,
            display=display,
            options=repeating_options(backend, getattr(system, "url", None), load, client, server),
        )
    except BackendError as error:
        _stop(console, str(error), FAILED)
    except KeyboardInterrupt:
        _stop(console, "Interrupted before the load began.", INTERRUPTED)
    conclude(done, console, load.max_error_rate)


def conclude(done: Run, console: Console, max_error_rate: float) -> None:
    """Prints the figures and ends with the exit code they deserve."""
    from fgbench.metrics.summary import Summary
    from fgbench.report.tables import run_table
    from fgbench.verdict import DONE, verdict

    console.print(run_table(done.info, Summary.from_dict(done.info["summary"])))
    console.print(f"run folder: {done.path}", soft_wrap=True, highlight=False)
    if (how := verdict(done.info, max_error_rate)).code != DONE:
        _stop(console, how.sentence, how.code)


def _stop(console: Console, sentence: str, code: int) -> NoReturn:
    console.print(sentence, style="bold red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
