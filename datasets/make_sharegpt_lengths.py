"""Makes the tables of the (prompt, output) token counts of ShareGPT conversations, without texts.

    python datasets/make_sharegpt_lengths.py [--source FILE] [--out FILE]

makes sharegpt-lengths.csv.gz. With OPT's tokenizer.json, which ``fgbench models pull opt-125m`` downloads,

    python datasets/make_sharegpt_lengths.py --as-published --tokenizer FILE

makes sharegpt-artifact-lengths.csv.gz: the lengths as FastServe's client counts them.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fgbench.workload.pulled import pull_sharegpt
from fgbench.workload.texts import TextPair, TextRecords, first_pair, first_turns, length_ok
from fgengine.model.store import pull

MODEL = "smollm2-135m"
BATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, help="a ShareGPT file; without it, the published one is pulled"
    )
    parser.add_argument("--tokenizer", type=Path, help=f"tokenizer.json; without it, that of {MODEL}")
    parser.add_argument(
        "--as-published",
        action="store_true",
        help="pair and count as FastServe's client does: the first two turns, with special tokens",
    )
    parser.add_argument("--out", type=Path, help="without it, the table in this folder is replaced")
    args = parser.parse_args()

    records = TextRecords(
        args.source or pull_sharegpt(print), first_turns if args.as_published else first_pair
    )
    tokenizer = args.tokenizer or pull(MODEL, print) / "tokenizer.json"
    table = "sharegpt-artifact-lengths.csv.gz" if args.as_published else "sharegpt-lengths.csv.gz"
    out = args.out or Path(__file__).with_name(table)
    lengths = list(token_lengths(iter(records), tokenizer, args.as_published))
    used = [pair for pair in lengths if length_ok(*pair)]
    rows = "".join(f"{prompt},{output}\n" for prompt, output in used)
    out.write_bytes(gzip.compress(f"prompt_tokens,output_tokens\n{rows}".encode(), mtime=0))

    tally = records.tally
    print(f"records: {tally.complete} complete, {tally.broken} incomplete, {records.unpaired} without a pair")
    print(
        f"pairs: {len(lengths)}, used {len(used)}, left out by the length filter {len(lengths) - len(used)}"
    )
    for name, column in zip(("prompt", "output"), zip(*used, strict=True), strict=True):
        print(f"{name} tokens: {describe(sorted(column))}")


def token_lengths(
    pairs: Iterator[TextPair], tokenizer_file: Path, special_tokens: bool
) -> Iterator[tuple[int, int]]:
    """Yield (prompt tokens, output tokens) of each pair, in order, with or without special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    while batch := list(islice(pairs, BATCH)):
        texts = [text for pair in batch for text in (pair.prompt, pair.completion)]
        counts = [len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens)]
        yield from zip(counts[::2], counts[1::2], strict=True)


def describe(values: list[int]) -> str:
    """Return mean, extremes and percentiles of sorted values as text."""
    quantiles = (5, 25, 50, 75, 90, 95, 99)
    percentiles = {f"p{q}": values[min(len(values) - 1, len(values) * q // 100)] for q in quantiles}
    text = ", ".join(f"{name} {value}" for name, value in percentiles.items())
    return f"mean {sum(values) / len(values):.1f}, min {values[0]}, {text}, max {values[-1]}"


if __name__ == "__main__":
    main()
