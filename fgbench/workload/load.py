"""Datasets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fgbench
from fgbench.workload.datasets import (
    Dataset,
    Lengths,
    Synthetic,
    Texts,
    parse_range,
    read_lengths,
    token_counter,
)
from fgbench.workload.sharegpt import read_records

DATASETS = {
    "sharegpt-lengths": "lengths of ShareGPT's conversations, with random tokens as prompts",
    "sharegpt": "ShareGPT's own texts, pulled once or given by --dataset-path",
    "synthetic": "lengths by --input-len and --output-len, with random tokens as prompts",
}
LENGTHS_FILE = "sharegpt-lengths.csv.gz"


def load_dataset(
    name: str = "sharegpt-lengths",
    *,
    path: Path | None = None,
    tokenizer: Callable[[], Path] | None = None,
    input_len: str = "512",
    output_len: str = "128",
    report: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """The dataset called ``name``, from ``path`` instead of its usual place where one is given.

    ``tokenizer`` gives the folder of the model's tokenizer.json; only ``sharegpt`` asks for it.

    Raises:
        ValueError: for a name, file or length that will not do; one sentence says why.
    """
    if path is not None and not path.is_file():
        raise ValueError(f"--dataset-path: there is no file {path}")
    if name == "sharegpt-lengths":
        return read_lengths(path, path.name.partition(".")[0]) if path else sharegpt_lengths()
    if name == "sharegpt":
        if tokenizer is None:
            raise ValueError("the dataset sharegpt needs the model's tokenizer, to count tokens")
        if path is None:
            from fgbench.workload.sharegpt_store import pull_sharegpt

            report("fetching ShareGPT (once)")
            path = pull_sharegpt(report)
        report(f"reading {path.name}")
        pairs = list(read_records(path))
        if not pairs:
            raise ValueError(f"{path} holds no conversation of a question and an answer")
        return Texts(name, pairs, token_counter(tokenizer()))
    if name == "synthetic":
        if path is not None:
            raise ValueError("the dataset synthetic reads no file; --input-len and --output-len make it")
        return Synthetic(parse_range(input_len), parse_range(output_len))
    raise ValueError(f"there is no dataset or file {name!r}; the datasets are {', '.join(DATASETS)}")


def sharegpt_lengths() -> Lengths:
    """The table in the repository's ``datasets/``, which wheels carry as ``fgbench/datasets``."""
    package = Path(fgbench.__file__).parent
    for folder in (package / "datasets", package.parent / "datasets"):
        if (folder / LENGTHS_FILE).is_file():
            return read_lengths(folder / LENGTHS_FILE, "sharegpt-lengths")
    raise ValueError(f"{LENGTHS_FILE} is missing from this installation of fgbench")
