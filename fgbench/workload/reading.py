"""Loads datasets by their name or from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fgbench.workload.conversations import Conversations, SyntheticConversations
from fgbench.workload.datasets import Dataset, Fits, Lengths, Mix, Synthetic, Texts, any_length, token_counter
from fgbench.workload.lengths import LengthDistribution, parse_lengths
from fgbench.workload.pulled import missing, saved_path
from fgbench.workload.records import ReadReport, csv_rows, json_records, looks_like_json
from fgbench.workload.texts import (
    PROMPT_COUNTS,
    TURNS,
    Parse,
    TextPair,
    TextRecords,
    alpaca_pairs,
    dolly_pairs,
    first_pair,
    is_mmlu_folder,
    length_ok,
    lengths_pair,
    longbench_pairs,
    mmlu_folder_records,
    mmlu_pairs,
    plain_pairs,
    short_answer_ok,
    text_pairs,
)
from fgbench.workload.trace import csv_format, is_mooncake, is_parquet, read_trace

DATASETS = {
    "sharegpt-lengths": "lengths of 15,350 ShareGPT conversations, with random tokens as prompts",
    "sharegpt-artifact-lengths": "lengths of 15,182 ShareGPT records, paired as by FastServe's client",
    "sharegpt": "ShareGPT's own texts, first question and answer",
    "alpaca": "Stanford Alpaca: an instruction and its answer",
    "mmlu": "MMLU: multiple-choice questions; the answer is one letter, or --output-len gives its length",
    "dolly": "Dolly: an instruction, its context and the response; your own copy of the file",
    "longbench": "LongBench: a long context, a question and its answer; your own copy of a file",
    "mix": "ShareGPT and MMLU, 1 to 39 as in FastServe's client; --mix gives other shares",
    "synthetic": "lengths from --input-len and --output-len, with random tokens as prompts",
    "lengths": "a file's columns prompt_tokens and output_tokens, with random tokens as prompts",
    "trace": "the lengths in a trace of any format that --trace reads, which also uses its times",
    "jsonl": "your own prompts, as JSON, CSV or lines of a .txt file: see 'fgbench datasets list --help'",
}
TABLES = ("sharegpt-lengths", "sharegpt-artifact-lengths")
"""Datasets that are tables of lengths in the repository."""
WITHOUT_ANSWERS = ("mmlu", "longbench", "jsonl")
"""Datasets of texts whose answers may be missing or of one letter; --output-len then gives their length."""
OWN_FILES = ("dolly", "longbench", "jsonl")
"""Datasets of texts that are the user's files."""
ARTIFACT_MIX = "sharegpt:0.025,mmlu:0.975"
DEFAULT_INPUT_LEN, DEFAULT_OUTPUT_LEN = "512", "128"
SNIFFED_RECORDS = 20

Report = Callable[[str], None]
TokenizerFolder = Callable[[], Path]


@dataclass(frozen=True, slots=True)
class _TextFormat:
    """Parser and accepted lengths of a dataset of texts."""

    parse: Parse
    fits: Fits


_TEXTS = {
    "sharegpt": _TextFormat(first_pair, length_ok),
    "alpaca": _TextFormat(alpaca_pairs, short_answer_ok),
    "mmlu": _TextFormat(mmlu_pairs, short_answer_ok),
    "dolly": _TextFormat(dolly_pairs, any_length),
    "longbench": _TextFormat(longbench_pairs, any_length),
    "jsonl": _TextFormat(plain_pairs, any_length),
}


def load_dataset(
    name: str | None = None,
    *,
    path: Path | None = None,
    tokenizer: TokenizerFolder | None = None,
    input_len: str | None = None,
    output_len: str | None = None,
    mix: str | None = None,
    multi_turn: bool = False,
    turns: str | None = None,
    report: Report = lambda line: None,
) -> Dataset:
    """Load a dataset.

    Example: ``load_dataset("sharegpt-lengths")`` or ``load_dataset(path=Path("mine.jsonl"), tokenizer=...)``.

    Args:
        name: Name of the dataset; None: the file's format decides, and without a file ``sharegpt-lengths``.
        path: File to read instead of the dataset's usual file.
        tokenizer: Returns the folder of the model's tokenizer.json; only needed for texts.
        input_len, output_len: Lengths as on the command line.
        mix: Parts of the dataset ``mix``, as on the command line.
        multi_turn: Whether to use all turns of each conversation.
        turns: Turns per conversation of ``synthetic``, as on the command line.
        report: Receives lines about slow steps and left-out records.

    Raises:
        ValueError: the name, the file or a length is wrong. The message is one sentence with the reason.
    """
    if path is not None and not path.exists():
        raise ValueError(f"--dataset-path: there is no file {path}: give the path of a dataset")
    name = name or (kind_of(path) if path is not None else "sharegpt-lengths")
    if name not in DATASETS:
        raise ValueError(f"there is no dataset or file {name!r}: give a file, or {', '.join(DATASETS)}")
    if mix is not None and name != "mix":
        raise ValueError(f"--mix does not work with the dataset {name}: use --dataset mix")
    if input_len is not None and name != "synthetic":
        raise ValueError(
            f"--input-len does not work with the dataset {name}, which has its own prompts: use --dataset "
            "synthetic"
        )
    if output_len is not None and name not in ("synthetic", "mix", *WITHOUT_ANSWERS):
        raise ValueError(
            f"--output-len does not work with the dataset {name}, which has its own answers: use --dataset "
            f"synthetic, {', '.join(WITHOUT_ANSWERS[:-1])} or {WITHOUT_ANSWERS[-1]}"
        )
    if name in ("synthetic", "mix") and path is not None:
        raise ValueError(f"the dataset {name} reads no file: use {_MADE_FROM[name]}")
    if turns is not None and name != "synthetic":
        raise ValueError(f"--turns does not work with the dataset {name}: use --dataset synthetic")
    if multi_turn and name != "sharegpt":
        raise ValueError(
            f"--multi-turn needs a dataset of conversations, and {name} is none: use --dataset sharegpt or a "
            "file of conversations, or --dataset synthetic --turns 4"
        )
    lengths = parse_lengths(output_len) if output_len is not None else None
    if name == "synthetic":
        prompts = parse_lengths(input_len or DEFAULT_INPUT_LEN)
        if turns is not None:
            answers = lengths or parse_lengths(DEFAULT_OUTPUT_LEN)
            return SyntheticConversations(prompts, answers, parse_lengths(turns))
        return Synthetic(prompts, lengths or parse_lengths(DEFAULT_OUTPUT_LEN))
    if name == "mix":
        return _mix(mix or ARTIFACT_MIX, tokenizer, output_len, report)
    if multi_turn:
        return _conversations(path, tokenizer, report)
    if name in _TEXTS:
        return _texts(name, path, tokenizer, lengths, report)
    if path is None and name in TABLES:
        return bundled_lengths(name)
    if path is None:
        raise ValueError(f"the dataset {name} is your own file: give it with --dataset FILE")
    if name == "trace":
        trace = read_trace(path)
        for note in trace.notes:
            report(note)
        return replace(trace.dataset, in_order=False)
    return read_lengths(path, path.name.partition(".")[0], report)


_MADE_FROM = {"synthetic": "--input-len and --output-len", "mix": "--mix"}
"""Dataset that reads no file -> the options that it is made from."""


def kind_of(path: Path) -> str:
    """Return the name of the dataset whose format the file has. Raises ValueError if it has none."""
    if path.is_dir():
        if is_mmlu_folder(path):
            return "mmlu"
        raise ValueError(f"{path} is a folder, but not MMLU's: give a file")
    if is_parquet(path):
        return "trace"
    if not looks_like_json(path):
        if path.name.removesuffix(".gz").endswith(".txt"):
            return "jsonl"
        header = next(csv_rows(ReadReport(path)), [])
        if csv_format(header):
            return "trace"
        if has_lengths(header):
            return "lengths"
        if "prompt" in header:
            return "jsonl"
        raise ValueError(f"{path} has no known format: give {_known_formats()}")
    for record in islice(json_records(ReadReport(path)), SNIFFED_RECORDS):
        if not isinstance(record, dict):
            continue
        for kind, keys in _KEYS:
            if keys <= record.keys():
                return kind
        if is_mooncake(record):
            return "trace"
        if record.keys() & set(PROMPT_COUNTS):
            return "lengths"
    raise ValueError(f"{path} has no known format: give {_known_formats()}")


_KEYS = (
    *(("sharegpt", {key}) for key in TURNS),
    ("alpaca", {"instruction", "output"}),
    ("dolly", {"instruction", "response"}),
    ("mmlu", {"question", "choices"}),
    ("longbench", {"context", "answers"}),
    ("jsonl", {"prompt"}),
)
"""Datasets and the keys of their records; the first whose keys a record has is its dataset."""


def _known_formats() -> str:
    records = "; ".join(f"{kind}: {', '.join(sorted(keys))}" for kind, keys in _KEYS)
    return (
        f"a JSON list or one record per line ({records}; mooncake), a CSV file of prompts, of lengths or of "
        "a trace, a trace in Parquet, or a .txt file with one prompt per line"
    )


def bundled_lengths(name: str) -> Lengths:
    """Read a table of the repository's ``datasets/``; in wheels it is in ``fgbench/datasets``."""
    package, file = Path(__file__).parents[1], f"{name}.csv.gz"
    for folder in (package / "datasets", package.parent / "datasets"):
        if (folder / file).is_file():
            return read_lengths(folder / file, name)
    raise ValueError(f"{file} is missing from this installation of fgbench: install it again")


def parse_mix(text: str) -> list[tuple[str, float]]:
    """Parse a mix such as ``sharegpt:0.025,mmlu:0.975`` into names or files with shares that sum to 1.

    Raises ValueError if ``text`` is not such a list.
    """
    parts: list[tuple[str, float]] = []
    for part in text.split(","):
        name, _, share = part.rpartition(":")
        try:
            weight = float(share)
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight < 1e9:
            raise ValueError(f"--mix {text!r} is not a list of datasets and shares: write {ARTIFACT_MIX}")
        parts.append((name, weight))
    total = sum(weight for _, weight in parts)
    return [(name, weight / total) for name, weight in parts]


def _mix(text: str, tokenizer: TokenizerFolder | None, output_len: str | None, report: Report) -> Mix:
    parts: list[tuple[Dataset, float]] = []
    for name, share in parse_mix(text):
        if name in ("mix", "synthetic"):
            raise ValueError(f"--mix cannot contain {name}: use other datasets")
        path = Path(name) if name not in DATASETS and Path(name).exists() else None
        kind = kind_of(path) if path is not None else name
        lengths = output_len if kind in WITHOUT_ANSWERS else None
        part = load_dataset(kind, path=path, tokenizer=tokenizer, output_len=lengths, report=report)
        parts.append((part, share))
    return Mix(tuple(parts))


def _texts(
    name: str,
    path: Path | None,
    tokenizer: TokenizerFolder | None,
    lengths: LengthDistribution | None,
    report: Report,
) -> Texts:
    if tokenizer is None:
        raise ValueError(f"the dataset {name} needs the model's tokenizer, to count tokens: give --tokenizer")
    path = path or _usual_path(name, report)
    report(f"reading {path.name}")
    text_format = _TEXTS[name]
    if path.is_dir():
        pairs = [pair for record in mmlu_folder_records(path) for pair in text_format.parse(record)]
    else:
        records = TextRecords(path, text_format.parse)
        pairs = list(records)
        if records.tally.loss:
            report(records.tally.loss)
    if not pairs:
        raise ValueError(f"{path} has no question with an answer: give another file")
    if name in ("longbench", "jsonl") and lengths is None and any(_has_no_length(pair) for pair in pairs):
        raise ValueError(
            f"{path} has records without the length of the answer: add output_tokens or a completion to "
            "every record, or give --output-len"
        )
    if name in ("mmlu", "longbench") and lengths is not None:
        pairs = [replace(pair, completion="") for pair in pairs]
    shown_name = path.name.partition(".")[0] if name in OWN_FILES else name
    return Texts(shown_name, pairs, token_counter(tokenizer()), text_format.fits, lengths)


def _conversations(path: Path | None, tokenizer: TokenizerFolder | None, report: Report) -> Conversations:
    if tokenizer is None:
        raise ValueError("conversations need the model's tokenizer, to count tokens: give --tokenizer")
    path = path or _usual_path("sharegpt", report)
    report(f"reading {path.name}")
    records = TextRecords(path, text_pairs)
    talks = [pairs for pairs in records.by_record() if pairs]
    if records.tally.loss:
        report(records.tally.loss)
    if not talks:
        raise ValueError(f"{path} has no question with an answer: give another file")
    return Conversations(f"{path.name.partition('.')[0]}-turns", talks, token_counter(tokenizer()))


def _has_no_length(pair: TextPair) -> bool:
    return not pair.completion and pair.output_tokens is None


def _usual_path(name: str, report: Report) -> Path:
    """Return the file of a dataset in the cache. Raises ValueError if it is not there."""
    if name in OWN_FILES:
        raise ValueError(f"the dataset {name} is your own file: give it with --dataset FILE")
    if name == "sharegpt":
        from fgbench.workload.pulled import pull_sharegpt

        report("downloading ShareGPT, if it is not in the cache")
        return pull_sharegpt(report)
    path = saved_path(name)
    if path is None:
        raise ValueError(missing(name))
    return path


COLUMNS = ("prompt_tokens", "output_tokens")
MAX_ROWS = 10_000_000
"""Maximum number of rows that are read from a file."""


def read_lengths(path: Path, name: str, report: Callable[[str], None] = lambda line: None) -> Lengths:
    """Read a table of lengths from a CSV or JSONL file, which may be compressed with gzip.

    Args:
        name: Name of the dataset.
        report: Receives a line if rows are left out.

    Raises:
        ValueError: the columns are missing, or no row has integer numbers of tokens.
        OSError: the file cannot be read.
    """
    tally = ReadReport(path)
    pairs: list[tuple[int, int]] = []
    for pair in _json_pairs(tally) if looks_like_json(path) else _csv_pairs(tally):
        if pair is None:
            tally.broken += 1
            continue
        tally.complete += 1
        pairs.append(pair)
        if len(pairs) == MAX_ROWS:
            break
    if not pairs:
        raise ValueError(
            f"{path} has no rows with integer numbers of tokens in {' and '.join(COLUMNS)}: give another file"
        )
    if tally.loss:
        report(tally.loss)
    return Lengths(name, tuple(pairs))


def has_lengths(header: list[str]) -> bool:
    """Whether the header of a CSV file has the columns of lengths."""
    return set(COLUMNS) <= {name.strip() for name in header}


def _csv_pairs(tally: ReadReport) -> Iterator[tuple[int, int] | None]:
    """Yield the lengths of each row; None for a row without valid lengths."""
    rows = csv_rows(tally)
    header = [name.strip() for name in next(rows, [])]
    if not has_lengths(header):
        raise ValueError(f"{tally.path} must have the columns {' and '.join(COLUMNS)}: name them so")
    prompt, output = (header.index(name) for name in COLUMNS)
    for row in rows:
        try:
            pair = (int(row[prompt]), int(row[output]))
        except (LookupError, ValueError):
            yield None
            continue
        yield pair if any_length(*pair) else None


def _json_pairs(tally: ReadReport) -> Iterator[tuple[int, int] | None]:
    """Yield the lengths of each record; None for a record without valid lengths."""

    def pair(record: Any) -> tuple[int, int] | None:
        try:
            return lengths_pair(record)
        except ValueError:
            return None

    yield from map(pair, json_records(tally))
