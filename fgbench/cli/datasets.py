"""``fgbench datasets``: lists, imports and describes the datasets that requests are made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgbench.cli.printing import say
from fgbench.metrics.statistics import Distribution
from fgbench.spec.load import LoadSpec
from fgbench.workload.datasets import Dataset, Lengths, Sample, Texts
from fgbench.workload.trace import Trace
from fgengine.config import EngineConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BAR_WIDTH = 24
MAX_LOOKED_AT = 1_000_000

app = typer.Typer(
    add_completion=False,
    help="List, download and describe datasets, also your own files.\n\n"
    "Example: fgbench datasets show sharegpt",
    no_args_is_help=True,
)


@app.command("list")
def list_datasets() -> None:
    """List the datasets and whether each one is on this machine.

    You can give your own file instead of a name: --dataset FILE. The file is a
    JSON list or has one JSON record per line; it may be compressed with gzip.
    The keys of its records tell fgbench what the file holds:

    \b
      prompt, output_tokens        your prompts; no length is left out
      prompt, completion           the same; as many tokens as that text has
      prompt                       the same; --output-len gives the length.
                                   These three also as a CSV file; a .txt
                                   file has one prompt per line
      prompt_tokens,               lengths only; also as a CSV file
        output_tokens
      conversations                ShareGPT; with messages, OpenAI's form
      instruction, input, output   Alpaca
      instruction, context,        Dolly
        response
      question, choices, answer    MMLU
      context, input, answers      LongBench
      timestamp, input_length,     a trace in Mooncake's format; also the CSV
        output_length              files of Azure, BurstGPT, Vidur, Splitwise

    Other names for output_tokens: max_tokens, output_len, output_length. For
    prompt_tokens: input_tokens, input_len, input_length. For completion:
    output, response, answer. Broken records are left out and counted.

    Example: fgbench datasets list
    """
    from rich.console import Console

    Console().print(_list_table())


@app.command("pull")
def pull_dataset(
    name: Annotated[str, typer.Argument(help="sharegpt, or alpaca or mmlu with --from.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="The file that you downloaded (for mmlu, or its folder), to check and to save."
        ),
    ] = None,
) -> None:
    """Save a dataset in your cache (FGBENCH_CACHE), to use it by its name.

    sharegpt is downloaded (27 MB) and checked by SHA-256. fgbench does not
    download alpaca and mmlu: download them yourself and give their place with
    --from.

    Example: fgbench datasets pull alpaca --from alpaca_data.json
    """
    from rich.console import Console

    from fgbench.workload.pulled import BY_HAND, keep, missing, saved_path

    console = Console()
    if name == "sharegpt":
        from fgbench.workload.pulled import pull_sharegpt

        if source is not None:
            raise ValueError(
                "--from does not work with sharegpt, which is downloaded: to use your own file, give "
                "--dataset FILE"
            )
        with console.status("Pulling sharegpt"):
            path = pull_sharegpt(lambda line: say(console, line))
        say(console, f"sharegpt is in {path}")
        return
    if name not in BY_HAND:
        raise ValueError(f"there is nothing to pull for {name!r}: give sharegpt, {' or '.join(BY_HAND)}")
    if source is None:
        if (here := saved_path(name)) is None:
            raise ValueError(missing(name))
        say(console, f"{name} is in {here}")
        return
    if not source.exists():
        raise ValueError(f"--from: there is no file {source}: give the file that you downloaded")
    with console.status(f"reading {source.name}"):
        records = keep(name, source)
    if records.tally.loss:
        say(console, records.tally.loss, "yellow")
    say(console, f"{records.tally.complete:,} records of {name} are saved in {saved_path(name)}")


@app.command("show")
def show(
    dataset: Annotated[str, typer.Argument(help="A name from 'fgbench datasets list', or a file.")],
    model: Annotated[
        str, typer.Option(help="Model whose tokenizer counts the tokens: a catalog name or a folder.")
    ] = EngineConfig().model,
    input_len: Annotated[
        str | None, typer.Option(help="For synthetic: prompt tokens, as in 'fgbench run'.")
    ] = None,
    output_len: Annotated[
        str | None, typer.Option(help="For synthetic, mmlu and jsonl: output tokens.")
    ] = None,
    mix: Annotated[str | None, typer.Option(help="For mix: NAME-OR-FILE:SHARE,NAME-OR-FILE:SHARE.")] = None,
    sample: Annotated[
        int, typer.Option(min=1, max=MAX_LOOKED_AT, help="Number of texts to count, drawn by --seed.")
    ] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the sample.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how many records a dataset has and how long they are.

    Prints quantiles and a histogram of the lengths. For a trace it also prints
    the arrival rate.

    Example: the requests made from ShareGPT, and from synthetic lengths:

    \b
        fgbench datasets show sharegpt --model smollm2-135m
        fgbench datasets show synthetic --input-len lognormal:128:1.2 \\
            --output-len zipf:1.1:1024
    """
    from rich.console import Console

    from fgbench.workload.reading import kind_of
    from fgbench.workload.trace import read_trace

    console = Console(stderr=as_json)

    def report(line: str) -> None:
        say(console, line, style="yellow" if ":" in line else "dim")

    options = LoadSpec(dataset=dataset, input_len=input_len, output_len=output_len, mix=mix)
    times: Timing | None = None
    with console.status(f"reading {dataset}"):
        name, path = options.dataset_source()
        if path is not None and (name or kind_of(path)) == "trace":
            times = timing(read_trace(path))
        found = look(options.to_dataset(EngineConfig(model=model), report), sample, seed)
    if as_json:
        when = {"seconds": times.seconds, "rate": times.rate, "cv": times.cv} if times else None
        typer.echo(json.dumps({**found.to_dict(), "times": when}, indent=2, allow_nan=False))
        return
    _print_look(found, times, console)


def _print_look(found: DatasetFigures, times: Timing | None, console: Console) -> None:
    console.print(f"[bold]{found.name}[/]: {_counts(found)}", highlight=False)
    if times is not None and times.rate is not None:
        say(
            console,
            f"over {times.seconds:,.0f} s: {times.rate:.3g} requests/s on average; coefficient of variation "
            f"of the gaps {times.cv:.2f} (1 for Poisson)",
        )
    if found.prompts:
        console.print(_quantiles(found))
        console.print(_histogram_table(found))


def _counts(found: DatasetFigures) -> str:
    if found.records is None:
        return f"unlimited; {found.looked_at:,} requests drawn"
    counts = f"{found.records:,} records"
    if found.looked_at < found.records:
        counts += f", {found.looked_at:,} of them counted"
    if found.too_long_or_short:
        counts += f", {found.too_long_or_short:,} left out as too long or too short"
    return counts


def _quantiles(found: DatasetFigures) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = ("mean", "min", "p50", "p90", "p95", "p99", "max")
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("tokens")
    for column in columns:
        table.add_column(column, justify="right", min_width=8)
    for name, lengths in (("prompt", found.prompts), ("output", found.outputs)):
        distribution = Distribution.of(lengths)
        assert distribution is not None
        values = [getattr(distribution, column) for column in columns]
        table.add_row(name, f"{values[0]:,.1f}", *(f"{value:,.0f}" for value in values[1:]))
    return table


def _histogram_table(found: DatasetFigures) -> Table:
    """Return a table with one row per power of two tokens; each column's longest bar has the full width."""
    from rich.table import Table

    sides = [histogram(found.prompts), histogram(found.outputs)]
    longest = max(map(len, sides))
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim")
    table.add_row("tokens", "prompts", "outputs")
    for bits in range(longest):
        low, high = 2**bits, 2 ** (bits + 1) - 1
        cells = [_bar(side[bits] if bits < len(side) else 0, max(side)) for side in sides]
        table.add_row(str(low) if low == high else f"{low:,}-{high:,}", *cells)
    return table


def _bar(count: int, highest: int) -> str:
    """Return a bar and the count. Non-zero counts get at least one cell."""
    width = max(1, round(BAR_WIDTH * count / highest)) if count else 0
    return f"{'█' * width} {count:,}".strip() if count else ""


def _list_table() -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from fgbench.workload.reading import DATASETS

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("what requests are made from")
    for name, summary in DATASETS.items():
        table.add_row(name, _state(name), summary)
    return table


def _state(name: str) -> str:
    from fgbench.workload.pulled import BY_HAND, saved_path

    if name == "sharegpt":
        return "[green]yes[/]" if saved_path(name) else "can be pulled"
    if name in BY_HAND:
        return "[green]yes[/]" if saved_path(name) else "by hand: pull --from"
    if name == "mix":
        return "[green]yes[/]" if saved_path("sharegpt") and saved_path("mmlu") else "its parts are missing"
    return "your own file" if name in ("lengths", "trace", "jsonl") else "[green]yes[/]"


@dataclass(frozen=True, slots=True)
class DatasetFigures:
    """Number and lengths of a dataset's records."""

    name: str
    records: int | None
    """Number of records; None: unlimited."""
    looked_at: int
    """Number of records whose lengths were counted: all, or a sample drawn by the seed."""
    too_long_or_short: int
    """Of these, number left out because of their length."""
    prompts: tuple[int, ...]
    """Prompt tokens of each remaining request."""
    outputs: tuple[int, ...]
    """Output tokens of each remaining request."""

    def to_dict(self) -> dict[str, Any]:
        """Return counts and distributions as plain JSON, without the individual lengths."""
        described = asdict(self)
        for side in ("prompts", "outputs"):
            distribution = Distribution.of(described.pop(side))
            described[f"{side[:-1]}_tokens"] = distribution.to_dict() if distribution else None
        return described


@dataclass(frozen=True, slots=True)
class Timing:
    """Arrival statistics of a trace."""

    seconds: float
    """Seconds from the first to the last arrival."""
    rate: float | None
    """Requests per second; None if all arrived at once."""
    cv: float | None
    """Standard deviation of the gaps divided by their mean; 1 for a Poisson process."""


def look(dataset: Dataset, limit: int, seed: int = 0) -> DatasetFigures:
    """Count the tokens of a dataset's records.

    Counts all records if their lengths are known. Counts at most ``limit`` records, drawn by ``seed``, if
    they must be tokenized or the dataset is unlimited.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    if isinstance(dataset, Lengths):
        samples = [Sample(*pair) for pair in dataset.pairs]
        return _look(dataset.name, len(samples), len(samples), samples)
    if isinstance(dataset, Texts):
        chosen = rng.permutation(len(dataset.pairs))[:limit].tolist()
        subset = replace(dataset, pairs=[dataset.pairs[i] for i in chosen])
        return _look(dataset.name, len(dataset.pairs), len(chosen), list(subset.once(rng)))
    samples = list(islice(dataset.samples(rng), limit))
    return _look(dataset.name, None, len(samples), samples)


def timing(trace: Trace) -> Timing:
    """Return the arrival statistics of a trace."""
    import numpy as np

    span = trace.times[-1]
    gaps = np.diff(trace.times)
    if not span:
        return Timing(0.0, None, None)
    return Timing(span, len(gaps) / span, float(gaps.std() / gaps.mean()))


def histogram(lengths: Sequence[int]) -> list[int]:
    """Count the lengths in each power of two: element i counts those of 2**i to 2**(i+1) - 1 tokens."""
    counts = [0] * max((n.bit_length() for n in lengths), default=0)
    for length in lengths:
        counts[length.bit_length() - 1] += 1
    return counts


def _look(name: str, records: int | None, looked_at: int, samples: Sequence[Sample]) -> DatasetFigures:
    return DatasetFigures(
        name=name,
        records=records,
        looked_at=looked_at,
        too_long_or_short=looked_at - len(samples),
        prompts=tuple(sample.prompt_tokens for sample in samples),
        outputs=tuple(sample.output_tokens for sample in samples),
    )
