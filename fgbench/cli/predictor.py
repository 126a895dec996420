"""``fgbench predictor``: trains and evaluates the output-length predictor that sjf and sprpt use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from fgbench.cli.printing import say

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.training import Encoder, Progress, Quality
    from fgbench.workload.texts import TextPair

app = typer.Typer(
    add_completion=False,
    help="Train and evaluate the predictor of output lengths.\n\n"
    "The policies sjf and sprpt use it with --predictor learned.\n\n"
    "Example: fgbench predictor train",
    no_args_is_help=True,
)

Model = Annotated[
    str, typer.Option(help="Model whose tokenizer reads the prompts: a catalog name or a folder.")
]
DatasetPath = Annotated[
    Path | None, typer.Option(help="A ShareGPT file. Default: the public one, downloaded once (27 MB).")
]


@app.command("train")
def train_predictor(
    model: Model = "smollm2-135m",
    dataset_path: DatasetPath = None,
    num: Annotated[int, typer.Option(min=1, help="Number of conversations to train on.")] = 8000,
    without: Annotated[
        Path | None, typer.Option(help="Leave out the conversations in this file, such as the test data.")
    ] = None,
) -> None:
    """Train the predictor on conversations and save it for --predictor learned.

    Replaces the model's saved predictor. A server that uses the predictor
    continues to train it.

    Example: train without the conversations that a benchmark then sends:

        fgbench predictor train --without my-sharegpt.jsonl
        fgbench run --policy sprpt --predictor learned \\
            --dataset-path my-sharegpt.jsonl --dataset sharegpt
    """
    from rich.console import Console

    from fgbench import training
    from fgbench.workload.texts import read_records
    from fgengine.scheduling.learned import Learned, predictor_path

    console = Console()
    encoder = _encoder(model)
    pairs = _pairs(dataset_path, console)
    if without is not None:
        if not without.is_file():
            raise ValueError(f"--without: there is no file {without}: give a ShareGPT file")
        pairs = training.without(pairs, read_records(without, every_turn=True))
    records, held_out = training.split(pairs, num)
    chosen = [pair for record in records for pair in record]
    if len(records) < num:  # this verb evaluates nothing, so it may also train on the held-out part
        chosen += held_out
    predictor = Learned(model, predictor_path(model))
    with _bars(console) as bar:
        examples = training.encode(chosen, encoder, bar("reading"))
        if not examples:
            raise ValueError("no conversation has a usable length: give other data with --dataset-path")
        training.train(predictor, examples, bar("learning"))
    predictor.save()
    say(console, f"trained on {len(examples):,} answers of {len(records):,} conversations")
    say(console, f"saved in {predictor.path}")


@app.command("eval")
def evaluate(
    model: Model = "smollm2-135m",
    dataset_path: DatasetPath = None,
    train: Annotated[int, typer.Option(min=1, help="Number of conversations to train on.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train new predictors and measure how well they predict unseen answers.

    Does not change the saved predictor. Holds out a fifth of the data, chosen
    by a hash, and predicts the first answers in it. It does this twice. First
    it holds out entire conversations. Then it holds out texts: other parts of
    the same conversations may be in the training data, which is easier.

    Example: fgbench predictor eval --train 8000
    """
    from rich.console import Console

    from fgbench import training
    from fgengine.scheduling.learned import Learned

    console = Console(stderr=as_json)
    encoder = _encoder(model)
    pairs = _pairs(dataset_path, console)
    found: dict[str, Quality] = {}
    for by in get_args(training.HoldOut):
        records, held_out = training.split(pairs, train, by)
        predictor = Learned(model)
        with _bars(console) as bar:
            examples = training.encode([p for record in records for p in record], encoder, bar("reading"))
            training.train(predictor, examples, bar("learning"))
            judged = training.encode(held_out, encoder, bar(f"reading unseen {by}"))
        found[by] = training.judge(predictor, judged, len(examples))
    if as_json:
        typer.echo(json.dumps({by: quality.to_dict() for by, quality in found.items()}, indent=2))
        return
    for by, quality in found.items():
        say(
            console,
            f"unseen {by}: trained on {quality.trained_on:,} answers of at most {train:,} records, evaluated "
            f"on {quality.judged_on:,}\n"
            f"  Spearman on log length   {quality.spearman:.3f}\n"
            f"  pairs in the right order {quality.pairwise_order:.3f}\n"
            f"  median error             a factor of {quality.median_factor:.2f}\n"
            f"  one prediction takes     {quality.prediction_seconds * 1e6:.0f} us",
        )


@app.command("show")
def show(model: Model = "smollm2-135m") -> None:
    """Show the saved predictor of a model.

    Example: fgbench predictor show --model smollm2-135m
    """
    from rich.console import Console

    from fgengine.scheduling.learned import Learned, predictor_path

    path = predictor_path(model)
    if not path.exists():
        raise ValueError(f"no predictor is saved for {model}: train one with 'fgbench predictor train'")
    predictor = Learned.load(path, model)
    say(
        Console(),
        f"{path}\ntrained on {predictor.num_learned:,} answers; "
        f"typical error of the log length (sigma) {predictor.sigma:.2f}",
    )


def _encoder(model: str) -> Encoder:
    from fgbench.training import encoder_of
    from fgengine.model.store import tokenizer_folder

    return encoder_of(tokenizer_folder(model, False))


def _pairs(path: Path | None, console: Console) -> list[TextPair]:
    from fgbench.workload.texts import read_records

    if path is None:
        from fgbench.workload.pulled import pull_sharegpt

        path = pull_sharegpt(lambda line: say(console, line))
    if not path.is_file():
        raise ValueError(f"--dataset-path: there is no file {path}: give a ShareGPT file")
    with console.status(f"reading {path.name}"):
        return list(read_records(path, every_turn=True))


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str], Progress]]:
    """Yield a function that takes a title, shows a progress bar and returns the bar's update function."""
    from rich.progress import Progress as RichProgress

    with RichProgress(console=console) as bars:

        def bar(title: str) -> Progress:
            task = bars.add_task(title)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield bar
