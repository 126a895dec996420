"""The program ``fgbench``: imports a verb when it is called, and prints its errors.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many request errors, 4 the client (not the server) was
the limit, 130 interrupted. A verb raises ``typer.Exit`` to end with a code other than 0.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fgbench.cli.signals import end_on_signals
from fgbench.exit_codes import FAILED, INTERRUPTED, WRONG_USAGE
from fgengine.extras import EXTRA_OF, MissingPackage

VERBS = {
    "demo": "Try everything once: download a model, profile it, compare two policies.",
    "serve": "Serve a model over HTTP with a scheduling policy that you choose.",
    "run": "Measure one server under load.",
    "sweep": "Measure several backends at several rates, or search the highest rate at an SLO.",
    "watch": "Show a running server live: queues, KV memory, offloads, tokens per second.",
    "simulate": "Simulate the engine and its scheduler: many replicas, no GPU, no weights.",
    "compare": "Compare runs in tables and pictures.",
    "report": "Write a report of runs: one HTML file to send to a colleague.",
    "reproduce": "Reproduce figures of the FastServe paper, next to the published curves.",
    "results": "List, show and remove saved runs, and query them in SQL.",
    "profile": "Measure how long this machine's steps take, for policies that need it.",
    "predictor": "Train and evaluate the predictor of output lengths.",
    "datasets": "List, download and describe the datasets that requests are made from.",
    "models": "List the models and download their weights.",
    "policies": "List the scheduling policies.",
    "backends": "List what can be measured here: FastGen, vLLM, simulations; and how to get the rest.",
}
"""Verb -> help. The module ``fgbench.cli.VERB`` has a function named VERB, or a typer ``app`` of commands."""


class Verbs(TyperGroup):
    """Lists the verbs from ``VERBS`` and imports a verb's module only when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name != "serve":  # which handles signals itself, and before that the program ends at once
            end_on_signals()
        return name, load_verb(name) if name in VERBS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb. Print a user's mistake as one sentence, without a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError:
            raise  # as in `fgbench compare | head`; typer ends the program without a message
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in EXTRA_OF:
                raise
            named = isinstance(error, MissingPackage)
            raise typer.Exit(print_error(error if named else MissingPackage(missing, "this verb"))) from error
        except (ValueError, OSError) as error:
            raise typer.Exit(print_error(error)) from error
        except RuntimeError as error:
            if not is_policy_error(error):
                raise
            raise typer.Exit(print_error(error)) from error


def load_verb(name: str) -> Any:
    """Import the verb's module and return its command."""
    module = importlib.import_module(f"fgbench.cli.{name}")
    if isinstance(getattr(module, "app", None), typer.Typer):
        return typer.main.get_command(module.app)
    from fgbench.cli.flags import Command

    verb = typer.Typer(add_completion=False)
    verb.command(name, cls=Command)(getattr(module, name))
    return typer.main.get_command(verb)


def is_policy_error(error: RuntimeError) -> bool:
    """Whether a scheduling policy, possibly the user's own, broke its contract in a simulation."""
    # Find the class in sys.modules: importing the engine is slow, and only the engine raises this error.
    module = sys.modules.get("fgengine.scheduling.policy")
    return module is not None and isinstance(error, module.PolicyError)


def print_error(error: Exception) -> int:
    """Print an error as one sentence, after its traceback if FGBENCH_DEBUG=1. Return the exit code."""
    if os.environ.get("FGBENCH_DEBUG") == "1":
        traceback.print_exception(error)
    sentence = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        sentence = f"{error.filename}: {error.strerror}"  # without errno
    print(f"fgbench: {sentence}", file=sys.stderr)
    return WRONG_USAGE if isinstance(error, ValueError) else FAILED


def show_version(requested: bool) -> None:
    """Print the version and end, if ``--version`` was given."""
    if requested:
        from importlib.metadata import version

        print(f"fgbench {version('fgbench')}")
        raise typer.Exit


app = typer.Typer(
    cls=Verbs,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Benchmark LLM serving from the terminal, with an engine that preempts at every iteration.",
    epilog="Start with: fgbench demo",
)


START = """fgbench measures LLM serving: what does a scheduling policy do to latency?

  fgbench demo --quick              see it work: one model, two policies
  fgbench run --rate 2.5            measure FastGen on this machine
  fgbench run --rate 2.5 --backend vllm
                                    start and measure vLLM, if it is installed
  fgbench run --url http://localhost:8000 --rate 2.5
                                    measure a running server: vLLM, SGLang, ...
  fgbench simulate --rate 16 --replicas 8
                                    simulate eight replicas; needs no GPU
  fgbench compare                   put the newest runs side by side

  fgbench --help                    all verbs;  fgbench run --help  one of them
"""


@app.callback()
def _program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=show_version)
    ] = False,
) -> None:
    """Benchmark LLM serving from the terminal, with an engine that preempts at every iteration."""
    if context.invoked_subcommand is None:
        print(START, end="")


def _listed() -> None:
    """Placeholder of a verb in ``--help`` until the verb is imported."""


for _name, _help in VERBS.items():
    app.command(_name, help=_help)(_listed)
