"""Prompts and answers out of the files people have: one reader, a parser for each form of record.

ShareGPT comes in two forms, told apart by what a record holds: ShareGPT's own
``{"id", "conversations": [{"from": "human" | "gpt", "value"}, ...]}`` and the plain
``{"id", "prompt", "completion"}``. MMLU comes as its authors pack it: a folder with
``test/<subject>_test.csv``, no header, the answer last.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fgbench.workload.lengths import MAX_LENGTH
from fgbench.workload.records import ReadReport, json_records

MAX_RECORDS = 2_000_000
"""Of one file; what follows is not read."""
CHOICES = "ABCDEFGHIJ"
ANSWERS = ("completion", "output", "response", "answer")
OUTPUT_COUNTS = ("output_tokens", "max_tokens", "output_len", "output_length")
PROMPT_COUNTS = ("prompt_tokens", "input_tokens", "input_len", "input_length")


@dataclass(frozen=True, slots=True)
class TextPair:
    """What was asked and what was answered."""

    id: str
    prompt: str
    completion: str = ""
    """Empty: there is none."""
    output_tokens: int | None = None
    """The length of the answer where the file tells it; None: that of ``completion``."""


Parse = Callable[[Any], list[TextPair]]
"""The pairs of a record, none where nobody answers in it. Raises ValueError for a record of another form."""


class TextRecords:
    """The pairs of a file, in its order; holds one record in memory at a time.

    The counts are complete once the iteration is. Iterating raises:
        ValueError: no record is of the right form; the first one's error.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, parse: Parse) -> None:
        self.path = path
        self.tally = ReadReport(path)
        self.unpaired = 0
        """Whole records that hold no pair."""
        self._parse = parse

    def __iter__(self) -> Iterator[TextPair]:
        self.tally = tally = ReadReport(self.path)
        self.unpaired = 0
        wrong: ValueError | None = None
        for record in json_records(tally):
            try:
                pairs = self._parse(record)
            except ValueError as error:
                wrong = wrong or error
                tally.broken += 1
                continue
            tally.whole += 1
            self.unpaired += not pairs
            yield from pairs
            if tally.whole == MAX_RECORDS:
                return
        if wrong is not None and not tally.whole:
            raise ValueError(f"{self.path}: {wrong}")


def alpaca_pairs(record: Any) -> list[TextPair]:
    """``{"instruction", "input", "output"}``: the prompt is the instruction, and the input below it."""
    instruction, below, output = _strings(record, "instruction", "input", "output", optional="input")
    return [TextPair("", f"{instruction}\n{below}" if below else instruction, output)]


def mmlu_pairs(record: Any) -> list[TextPair]:
    """``{"question", "choices", "answer"}``, the answer a letter or a number from 0. As in the published
    experiments the prompt lists the choices and ends in "Answer:", and the output is the letter."""
    (question,) = _strings(record, "question")
    choices, answer = record.get("choices"), record.get("answer")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(CHOICES):
        raise ValueError(f'"choices" must be a list of 2 to {len(CHOICES)}; this one is {_shown(choices)}')
    letters = CHOICES[: len(choices)]
    if isinstance(answer, int) and 0 <= answer < len(letters):
        answer = letters[answer]
    if not isinstance(answer, str) or answer not in letters or len(answer) != 1:
        raise ValueError(
            f'"answer" must be one of {letters} or a number from 0; this one is {_shown(answer)}'
        )
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return [TextPair("", "\n".join([question, *lines, "Answer:"]), answer)]


def plain_pairs(record: Any) -> list[TextPair]:
    """``{"prompt"}`` and how long the answer is: a count (``OUTPUT_COUNTS``) or a text (``ANSWERS``), or
    neither."""
    (prompt,) = _strings(record, "prompt")
    if not prompt:
        raise ValueError('"prompt" must not be empty')
    count = next((record[key] for key in OUTPUT_COUNTS if record.get(key) is not None), None)
    if count is not None:
        return [TextPair(str(record.get("id", "")), prompt, output_tokens=_count(count))]
    answer = next((record[key] for key in ANSWERS if isinstance(record.get(key), str)), "")
    return [TextPair(str(record.get("id", "")), prompt, answer)]


def lengths_pair(record: Any) -> tuple[int, int]:
    """Prompt and output tokens of a record that has counts and no text: ``PROMPT_COUNTS``, ``OUTPUT_COUNTS``.

    Raises ValueError for a record without them.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object; this one is {_shown(record)}")
    found = [
        next((record[key] for key in keys if record.get(key) is not None), None)
        for keys in (PROMPT_COUNTS, OUTPUT_COUNTS)
    ]
    if None in found:
        raise ValueError(
            f"a record must hold one of {', '.join(PROMPT_COUNTS)} and one of {', '.join(OUTPUT_COUNTS)}"
        )
    return _count(found[0]), _count(found[1])


def _strings(record: Any, *keys: str, optional: str = "") -> list[str]:
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object; this one is {_shown(record)}")
    values: list[str] = []
    for key in keys:
        value = record.get(key, "" if key == optional else None)
        if not isinstance(value, str):
            raise ValueError(f'a record must hold "{key}" as a string; this one is {_shown(record)}')
        values.append(value)
    return values


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_LENGTH:
        raise ValueError(f"a number of tokens must be whole, from 1 to {MAX_LENGTH}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return repr(str(value)[:80])


ENDING = "_test.csv"


def is_mmlu_folder(path: Path) -> bool:
    return path.is_dir() and any((path / "test").glob(f"*{ENDING}"))


def mmlu_folder_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Every question as ``{"subject", "question", "choices", "answer"}``, subjects in alphabetical order.

    Raises ValueError where there is no such file or one is not a table in UTF-8.
    """
    files = sorted((folder / "test").glob(f"*{ENDING}"))
    if not files:
        raise ValueError(f"{folder} is not MMLU's folder: it has no test/<subject>{ENDING}")
    for path in files:
        subject = path.name.removesuffix(ENDING)
        for question, *choices, answer in _rows(path):
            yield {"subject": subject, "question": question, "choices": choices, "answer": answer.strip()}


def _rows(path: Path) -> list[list[str]]:
    """Of at least two fields."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file) if len(row) > 1]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table in UTF-8: {error}") from None


MAX_PROMPT_TOKENS = 1024
MAX_TOTAL_TOKENS = 2048
MIN_TOKENS = 4


def length_ok(prompt_tokens: int, output_tokens: int) -> bool:
    """The filter of the published experiments: neither side shorter than 4 tokens, prompts up to 1024,
    prompt and output together up to 2048."""
    return (
        MIN_TOKENS <= prompt_tokens <= MAX_PROMPT_TOKENS
        and output_tokens >= MIN_TOKENS
        and prompt_tokens + output_tokens <= MAX_TOTAL_TOKENS
    )


def short_answer_ok(prompt_tokens: int, output_tokens: int) -> bool:
    """The same for questions with short answers, of which the published client leaves out only those that
    are short on both sides."""
    return (
        min(prompt_tokens, output_tokens) >= 1
        and max(prompt_tokens, output_tokens) >= MIN_TOKENS
        and prompt_tokens <= MAX_PROMPT_TOKENS
        and prompt_tokens + output_tokens <= MAX_TOTAL_TOKENS
    )


def read_records(path: str | Path, *, every_turn: bool = False) -> TextRecords:
    """The (prompt, completion) pairs of a ShareGPT file: iterate, then read the counts.

    ``every_turn``: every question that is answered, not only a conversation's first.
    """
    return TextRecords(Path(path), text_pairs if every_turn else first_pair)


def first_pair(record: Any) -> list[TextPair]:
    """The first human turn and the gpt turn right after it, where there is such a pair.

    Raises ValueError for a record of neither form.
    """
    turns, pairs = _turns(record), text_pairs(record)
    first = next((turn for turn, _ in turns if turn["from"] == "human"), None)
    return pairs[:1] if pairs and (first is None or first["value"] == pairs[0].prompt) else []


def text_pairs(record: Any) -> list[TextPair]:
    """Every human turn with a gpt turn right after it.

    Raises ValueError for a record of neither form.
    """
    turns = _turns(record)
    name = str(record.get("id", ""))
    if "conversations" not in record:
        return [TextPair(name, str(record["prompt"]), str(record["completion"]))]
    return [
        TextPair(name, str(turn["value"]), str(answer["value"]))
        for turn, answer in turns
        if turn["from"] == "human" and answer["from"] == "gpt"
    ]


def _turns(record: Any) -> list[tuple[Any, Any]]:
    """Neighbouring turns of a conversation, checked; none of a plain record."""
    if not isinstance(record, dict) or not (
        "conversations" in record or {"prompt", "completion"} <= set(record)
    ):
        raise ValueError(
            'a record must hold "conversations" (ShareGPT) or "prompt" and "completion"; '
            f"this one is {str(record)[:80]!r}"
        )
    if "conversations" not in record:
        return []
    try:
        turns = list(record["conversations"])
        for turn in turns:
            turn["from"], turn["value"]
    except (TypeError, KeyError):
        name = str(record.get("id", ""))
        raise ValueError(f'record {name!r}: every turn must hold "from" and "value"') from None
    return list(pairwise(turns))
