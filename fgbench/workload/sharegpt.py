"""ShareGPT: which of a conversation's turns are a prompt and its answer, and which lengths count.

Two forms, told apart by what a record holds: ShareGPT's own
``{"id", "conversations": [{"from": "human" | "gpt", "value"}, ...]}`` and the plain
``{"id", "prompt", "completion"}``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from fgbench.workload.texts import TextPair, TextRecords

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
