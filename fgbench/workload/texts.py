"""Reads prompts and answers from files: one reader, and a parser for each format of record.

ShareGPT has two formats, which differ in their keys: the original
``{"id", "conversations": [{"from": "human" | "gpt", "value"}, ...]}`` and the plain
``{"id", "prompt", "completion"}``. MMLU is a folder, as its authors publish it, with files
``test/<subject>_test.csv``. They have no header, and the answer is the last column.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fgbench.workload.lengths import MAX_LENGTH
from fgbench.workload.records import ReadReport, text_records

MAX_RECORDS = 2_000_000
"""Maximum number of records that are read from a file."""
CHOICES = "ABCDEFGHIJ"
"""Letters of the choices in MMLU's questions."""
ANSWERS = ("completion", "output", "response", "answer")
"""Keys of a record that may hold the text of the answer."""
OUTPUT_COUNTS = ("output_tokens", "max_tokens", "output_len", "output_length", "output_tokens_count")
"""Keys of a record that may hold the number of output tokens."""
TURNS = ("conversations", "conversation", "messages")
"""Keys of a record that may hold the turns of a conversation."""
SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "bard": "gpt",
}
"""Names of speakers -> the two that are paired. Other speakers, such as a system prompt, are left out."""
PROMPT_COUNTS = ("prompt_tokens", "input_tokens", "input_len", "input_length")
"""Keys of a record that may hold the number of prompt tokens."""


@dataclass(frozen=True, slots=True)
class TextPair:
    """A prompt and its answer."""

    id: str
    prompt: str
    completion: str = ""
    """Text of the answer; empty: there is none."""
    output_tokens: int | None = None
    """Length of the answer, if the file gives it; None: the length of ``completion``."""


Parse = Callable[[Any], list[TextPair]]
"""Returns the pairs of a record, which may be none. Raises ValueError if the record has another format."""


class TextRecords:
    """The pairs of a file, in order. Stores one record at a time.

    Iterate over it, then read the counts. Iterating raises:
        ValueError: no record has the right format. The message is that of the first record.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, parse: Parse) -> None:
        self.path = path
        self.tally = ReadReport(path)
        self.unpaired = 0
        """Number of complete records without a pair."""
        self._parse = parse

    def __iter__(self) -> Iterator[TextPair]:
        for pairs in self.by_record():
            yield from pairs

    def by_record(self) -> Iterator[list[TextPair]]:
        """Yield the pairs of each record, which may be none. Raises as iterating over the pairs."""
        self.tally = tally = ReadReport(self.path)
        self.unpaired = 0
        wrong: ValueError | None = None
        for record in text_records(tally, (*OUTPUT_COUNTS, *PROMPT_COUNTS)):
            try:
                pairs = self._parse(record)
            except ValueError as error:
                wrong = wrong or error
                tally.broken += 1
                continue
            tally.complete += 1
            self.unpaired += not pairs
            yield pairs
            if tally.complete == MAX_RECORDS:
                return
        if wrong is not None and not tally.complete:
            raise ValueError(f"{self.path}: {wrong}")


def alpaca_pairs(record: Any) -> list[TextPair]:
    """Parse ``{"instruction", "input", "output"}``; the prompt is the instruction followed by the input."""
    instruction, context, output = _strings(record, "instruction", "input", "output", optional="input")
    return [TextPair("", f"{instruction}\n{context}" if context else instruction, output)]


def dolly_pairs(record: Any) -> list[TextPair]:
    """Parse Dolly's ``{"instruction", "context", "response"}``; the prompt is the first two."""
    instruction, context, output = _strings(record, "instruction", "context", "response", optional="context")
    return [TextPair("", f"{instruction}\n{context}" if context else instruction, output)]


def longbench_pairs(record: Any) -> list[TextPair]:
    """Parse LongBench's ``{"context", "input", "answers"}``; the answer is the first one."""
    context, question = _strings(record, "context", "input", optional="input")
    answers = record.get("answers")
    answer = answers[0] if isinstance(answers, list) and answers and isinstance(answers[0], str) else ""
    return [TextPair(str(record.get("_id", "")), "\n\n".join(filter(None, (context, question))), answer)]


def mmlu_pairs(record: Any) -> list[TextPair]:
    """Parse ``{"question", "choices", "answer"}``; the answer is a letter or a number from 0.

    As in the published experiments, the prompt lists the choices and ends with "Answer:", and the output is
    the letter.
    """
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
    """Parse ``{"prompt"}`` with the answer's length (``OUTPUT_COUNTS``), text (``ANSWERS``) or neither."""
    (prompt,) = _strings(record, "prompt")
    if not prompt:
        raise ValueError('"prompt" must not be empty')
    count = next((record[key] for key in OUTPUT_COUNTS if record.get(key) is not None), None)
    if count is not None:
        return [TextPair(str(record.get("id", "")), prompt, output_tokens=_count(count))]
    answer = next((record[key] for key in ANSWERS if isinstance(record.get(key), str)), "")
    return [TextPair(str(record.get("id", "")), prompt, answer)]


def lengths_pair(record: Any) -> tuple[int, int]:
    """Return the prompt and output tokens of a record that has only counts.

    The keys are in ``PROMPT_COUNTS`` and ``OUTPUT_COUNTS``. Raises ValueError if a count is missing.
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
    """Return the strings under ``keys``. Raises ValueError if one is missing or not a string."""
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
    """Return a number of tokens. Raises ValueError if ``value`` is not one."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_LENGTH:
        raise ValueError(f"a number of tokens must be an integer from 1 to {MAX_LENGTH}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return repr(str(value)[:80])


ENDING = "_test.csv"


def is_mmlu_folder(path: Path) -> bool:
    """Whether the path is a folder of MMLU's test files."""
    return path.is_dir() and any((path / "test").glob(f"*{ENDING}"))


def mmlu_folder_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every question as ``{"subject", "question", "choices", "answer"}``, sorted by subject.

    Raises ValueError if there is no file, or if one is not a table in UTF-8.
    """
    files = sorted((folder / "test").glob(f"*{ENDING}"))
    if not files:
        raise ValueError(f"{folder} is not MMLU's folder: it has no test/<subject>{ENDING}")
    for path in files:
        subject = path.name.removesuffix(ENDING)
        for question, *choices, answer in _rows(path):
            yield {"subject": subject, "question": question, "choices": choices, "answer": answer.strip()}


def _rows(path: Path) -> list[list[str]]:
    """Return the rows with at least two fields."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file) if len(row) > 1]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table in UTF-8: {error}") from None


MAX_PROMPT_TOKENS = 1024
MAX_TOTAL_TOKENS = 2048
MIN_TOKENS = 4


def length_ok(prompt_tokens: int, output_tokens: int) -> bool:
    """Whether the published experiments accept these lengths.

    Both are at least 4 tokens, the prompt is at most 1024 tokens, and both together are at most 2048 tokens.
    """
    return (
        MIN_TOKENS <= prompt_tokens <= MAX_PROMPT_TOKENS
        and output_tokens >= MIN_TOKENS
        and prompt_tokens + output_tokens <= MAX_TOTAL_TOKENS
    )


def short_answer_ok(prompt_tokens: int, output_tokens: int) -> bool:
    """Whether the published client accepts these lengths for datasets with short answers.

    As ``length_ok``, but only one of the two must have at least 4 tokens.
    """
    return (
        min(prompt_tokens, output_tokens) >= 1
        and max(prompt_tokens, output_tokens) >= MIN_TOKENS
        and prompt_tokens <= MAX_PROMPT_TOKENS
        and prompt_tokens + output_tokens <= MAX_TOTAL_TOKENS
    )


def read_records(path: str | Path, *, every_turn: bool = False) -> TextRecords:
    """Return the (prompt, completion) pairs of a ShareGPT file: iterate, then read the counts.

    ``every_turn``: True: all questions with an answer; False: only the first of each conversation.
    """
    return TextRecords(Path(path), text_pairs if every_turn else first_pair)


def first_pair(record: Any) -> list[TextPair]:
    """Return the first human turn and the gpt turn directly after it, or nothing if no gpt turn follows.

    Raises ValueError if the record has no known format.
    """
    turns = _turns(record)
    first = next((text for speaker, text in turns if speaker == "human"), None)
    pairs = text_pairs(record)
    return pairs[:1] if pairs and (first is None or first == pairs[0].prompt) else []


def first_turns(record: Any) -> list[TextPair]:
    """Return the first two turns of a conversation as prompt and answer, no matter who speaks.

    FastServe's client does this. A third of ShareGPT's records are later parts of conversations, which begin
    with an answer: there, the answer becomes the prompt, and the next question the answer.

    Raises ValueError if the record has no known format.
    """
    turns = _turns(record)
    if not _turns_key(record):
        return text_pairs(record)
    return [TextPair(str(record.get("id", "")), a, b) for (_, a), (_, b) in [*pairwise(turns)][:1]]


def text_pairs(record: Any) -> list[TextPair]:
    """Return every human turn with the gpt turn directly after it.

    Raises ValueError if the record has no known format.
    """
    turns = _turns(record)
    name = str(record.get("id", ""))
    if not _turns_key(record):
        return [TextPair(name, str(record["prompt"]), str(record["completion"]))]
    return [
        TextPair(name, question, answer)
        for (asker, question), (answerer, answer) in pairwise(turns)
        if asker == "human" and answerer == "gpt"
    ]


def _turns_key(record: Any) -> str:
    """Return the key of a record's turns; empty if it has none."""
    return next((key for key in TURNS if isinstance(record, dict) and key in record), "")


def _turns(record: Any) -> list[tuple[str, str]]:
    """Return (speaker, text) of each turn of a conversation; nothing for a plain record.

    The speaker is ``human`` or ``gpt`` for all their names, else as in the file. Turns of a system prompt are
    left out. Raises ValueError if the record has no known format, or if a turn is malformed.
    """
    key = _turns_key(record)
    if not key:
        if isinstance(record, dict) and {"prompt", "completion"} <= set(record):
            return []
        raise ValueError(
            'a record must hold "conversations" (ShareGPT), "messages" (OpenAI) or "prompt" and '
            f'"completion"; this one is {str(record)[:80]!r}'
        )
    try:
        turns = [_turn(turn) for turn in record[key]]
    except (TypeError, KeyError):
        name = str(record.get("id", ""))
        raise ValueError(
            f'record {name!r}: every turn must hold "from" and "value", or "role" and "content"'
        ) from None
    return [turn for turn in turns if turn[0] != "system"]


def _turn(turn: Any) -> tuple[str, str]:
    """Return the speaker and the text of a turn. Raises TypeError or KeyError if it is malformed."""
    speaker, text = (turn["from"], turn["value"]) if "from" in turn else (turn["role"], turn["content"])
    if isinstance(text, list):  # OpenAI's form for texts with images
        text = "".join(str(part["text"]) for part in text if part["type"] == "text")
    if not isinstance(text, str):  # such as null, if the answer is a call of a tool
        raise TypeError
    return SPEAKERS.get(str(speaker).lower(), str(speaker).lower()), str(text)
