"""The program ``fgbench``: its verbs, loaded only when used, and what it says and returns when they fail.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many request errors, 4 the client (not the server) was
the limit, 130 interrupted. Verbs end with another code than 0 by raising ``typer.Exit``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fgbench.exit_codes import FAILED, INTERRUPTED, WRONG_USAGE
from fgengine.extras import EXTRA_OF, MissingPackage

VERBS = {
    "demo": "See it work: a model, a server, a load, two policies side by side.",
    "serve": "Serve a model over HTTP with the scheduling policy of your choice.",
    "run": "Measure a server under a load of requests arriving at a given rate.",
    "sweep": "Measure several backends at several rates, or search the highest rate at an SLO.",
    "watch": "Show a running server live: queues, memory, swaps, tokens per second.",
    "simulate": "Run the scheduler on virtual clocks: many copies, many requests, no machine.",
    "compare": "Put runs side by side: tables, verdicts, pictures.",
    "results": "List, show and remove the runs that are kept, and ask them in SQL.",
    "profile": "Measure how long this machine's steps take, for policies that predict.",
    "predictor": "Teach and judge the predictor of output lengths.",
    "datasets": "List the datasets there are, get them, and see how long their requests are.",
    "models": "List the models there are and pull their weights.",
    "policies": "List the scheduling policies there are.",
}
"""Each verb's function of the same name, or ``app`` of commands, is in the module ``fgbench.cli.VERB``."""


class Verbs(TyperGroup):
    """Lists the verbs from ``VERBS`` and imports a verb's module only when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if name in VERBS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a user's mistake becomes a sentence."""
        end_on_signals()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError:
            raise  # `fgbench compare | head`: typer ends it quietly
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in EXTRA_OF:
                raise
            known = isinstance(error, MissingPackage)
            raise typer.Exit(tell(error if known else MissingPackage(missing, "this verb"))) from error
        except (ValueError, OSError) as error:
            raise typer.Exit(tell(error)) from error
        except RuntimeError as error:
            if not is_policy_error(error):
                raise
            raise typer.Exit(tell(error)) from error


def load_verb(name: str) -> Any:
    """The verb's command, ready to be called."""
    module = importlib.import_module(f"fgbench.cli.{name}")
    if isinstance(getattr(module, "app", None), typer.Typer):
        return typer.main.get_command(module.app)
    from fgbench.cli.flags import Command

    verb = typer.Typer(add_completion=False)
    verb.command(name, cls=Command)(getattr(module, name))
    return typer.main.get_command(verb)


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM end every verb as Ctrl-C does: its servers stop, the terminal is restored.

    SIGINT too must be set: a job that a script puts into the background starts with SIGINT ignored, and then
    Python raises no KeyboardInterrupt. Only the main thread may set handlers; elsewhere nothing changes.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)


def is_policy_error(error: RuntimeError) -> bool:
    """Whether a scheduling policy, perhaps the user's own, broke its contract in a simulation."""
    # The class is looked up, not imported: only a verb that has loaded the engine can have raised it.
    module = sys.modules.get("fgengine.scheduling.policy")
    return module is not None and isinstance(error, module.PolicyError)


def tell(error: Exception) -> int:
    """Print an error as one sentence, with its traceback where FGBENCH_DEBUG=1; returns the exit code."""
    if os.environ.get("FGBENCH_DEBUG") == "1":
        traceback.print_exception(error)
    sentence = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        sentence = f"{error.filename}: {error.strerror}"  # without the number
    print(f"fgbench: {sentence}", file=sys.stderr)
    return WRONG_USAGE if isinstance(error, ValueError) else FAILED


def show_version(wanted: bool) -> None:
    if wanted:
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
    """What ``--help`` shows of a verb until it is loaded."""


for _name, _help in VERBS.items():
    app.command(_name, help=_help)(_listed)
