"""fgbench predictor: teaching the output-length predictor of sjf and sprpt, and judging it."""

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
    help="Predict output lengths from prompts, for --policy sjf and sprpt with --predictor learned.\n\n"
    "Example: fgbench predictor train",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Option(help="Whose tokens prompts are made of: a catalog name or a folder.")]
DatasetPath = Annotated[
    Path | None, typer.Option(help="A ShareGPT file; default: the public one, pulled once (27 MB).")
]


@app.command("train")
def train_predictor(
    model: Model = "smollm2-135m",
    dataset_path: DatasetPath = None,
    num: Annotated[int, typer.Option(min=1, help="Conversations to learn from.")] = 8000,
    without: Annotated[
        Path | None, typer.Option(help="Leave out the conversations in this file: a benchmark's own.")
    ] = None,
) -> None:
    """Learn from conversations and keep the result for --predictor learned, which goes on learning.

    What was kept for the model before is replaced. To benchmark on texts it has not seen:

        fgbench predictor train --without my-sharegpt.jsonl
        fgbench run --policy sprpt --predictor learned --dataset-path my-sharegpt.jsonl --dataset sharegpt
    """
    from rich.console import Console

    from fgbench import training
    from fgbench.workload.texts import read_records
    from fgengine.scheduling.learned import Learned, kept_path

    console = Console()
    encoder = _encoder(model)
    pairs = _pairs(dataset_path, console)
    if without is not None:
        if not without.is_file():
            raise ValueError(f"--without: there is no file {without}")
        pairs = training.without(pairs, read_records(without, every_turn=True))
    records, held_out = training.split(pairs, num)
    chosen = [pair for record in records for pair in record]
    if len(records) < num:  # everything may be learned from: nothing is judged here
        chosen += held_out
    predictor = Learned(model, kept_path(model))
    with _bars(console) as bar:
        examples = training.encode(chosen, encoder, bar("reading"))
        if not examples:
            raise ValueError("no conversation of a usable length is left to learn from")
        training.train(predictor, examples, bar("learning"))
    predictor.save()
    say(console, f"learned {len(examples):,} answers of {len(records):,} conversations")
    say(console, f"kept in {predictor.path}")


@app.command("eval")
def evaluate(
    model: Model = "smollm2-135m",
    dataset_path: DatasetPath = None,
    train: Annotated[int, typer.Option(min=1, help="Conversations to learn from.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Teach fresh predictors and judge them on what they have not seen. What is kept is not touched.

    A fifth is held out, chosen by a hash and judged by first answers, in two ways: whole conversations; and
    texts, where other parts of the same conversation may have been learned from, which is easier.

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
            f"unseen {by}: learned {quality.trained_on:,} answers of {train:,} records or fewer, judged on "
            f"{quality.judged_on:,}\n"
            f"  Spearman on log length   {quality.spearman:.3f}\n"
            f"  pairs in the right order {quality.pairwise_order:.3f}\n"
            f"  half are off by less than a factor of {quality.median_factor:.2f}\n"
            f"  one prediction takes     {quality.prediction_seconds * 1e6:.0f} us",
        )


@app.command("show")
def show(model: Model = "smollm2-135m") -> None:
    """What is kept for a model.

    Example: fgbench predictor show --model smollm2-135m
    """
    from rich.console import Console

    from fgengine.scheduling.learned import Learned, kept_path

    path = kept_path(model)
    if not path.exists():
        raise ValueError(f"nothing is kept for {model}: 'fgbench predictor train' makes it")
    predictor = Learned.load(path, model)
    say(
        Console(),
        f"{path}\nlearned {predictor.num_learned:,} answers; "
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
        raise ValueError(f"--dataset-path: there is no file {path}")
    with console.status(f"reading {path.name}"):
        return list(read_records(path, every_turn=True))


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str], Progress]]:
    """Gives a function that makes a progress bar of a title."""
    from rich.progress import Progress as RichProgress

    with RichProgress(console=console) as bars:

        def bar(title: str) -> Progress:
            task = bars.add_task(title)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield bar
