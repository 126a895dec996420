"""Fields of requests that this server does not have. None that would change the answer is ignored.

A field that is known from OpenAI or vLLM and not supported is refused, unless its value has no effect. A
field that looks like a misspelt one is refused too, and so is one of another route. Fields that cannot change
the answer are ignored. Any other one is ignored and reported, so that the server's log can name it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

NO_EFFECT: dict[str, tuple[Any, ...]] = {
    # several answers, or other ways of choosing tokens
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "logits_processors": ([],),
    # the same, under the names of other servers
    **dict.fromkeys(
        (
            *("stop_sequences", "stop_regex", "do_sample", "num_beams", "typical_p", "top_a", "mirostat"),
            *("min_length", "max_length", "min_new_tokens", "max_new_tokens", "n_predict"),
            *("no_repeat_ngram_size", "repetition_detection", "dry_multiplier", "xtc_probability"),
            *("grammar", "json_schema", "regex", "ebnf", "guided_decoding_backend"),
            *("thinking", "thinking_token_budget", "reasoning", "enable_thinking", "lora", "vllm_xargs"),
            "kv_transfer_params",
        ),
        (),
    ),
    # forms of the answer
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "top_logprobs": (0,),
    "prompt_logprobs": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    # forms of the prompt
    "add_special_tokens": (),
    "truncate_prompt_tokens": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "prompt_embeds": (),
    "mm_processor_kwargs": ({},),
    "web_search_options": (),
    "prediction": (),
    # the order of service
    "priority": (0,),
}
"""Fields that are not supported, each with the values that have no effect; null never has one."""
INSTEAD = {"functions": "tools", "function_call": "tool_choice"}
"""Fields of chats that have replaced a field of ``NO_EFFECT``."""
HARMLESS = frozenset(
    {
        *(
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
        ),
        *("parallel_tool_calls", "verbosity", "request_id", "cache_salt"),
    }
)
"""Fields that cannot change the answer."""
OF_MESSAGES: dict[str, tuple[Any, ...]] = {
    "function_call": (),
    "audio": (),
    "refusal": (),
}
"""Fields of a chat's messages that are not supported, as in ``NO_EFFECT``."""
OF_STREAM_OPTIONS: dict[str, tuple[Any, ...]] = {
    "include_obfuscation": (False,),
    "continuous_usage_stats": (False,),
}
"""Fields of ``stream_options`` that are not supported, as in ``NO_EFFECT``."""
HARMLESS_INSIDE = frozenset({"annotations", "cache_control"})
"""Fields of messages, their parts and tools that cannot change the answer."""
HARMLESS_IN_CALLS = frozenset({"index"})
"""Fields of a message's calls that cannot change the answer: those of a streamed answer have a number."""
MAX_UNKNOWN, MAX_NAME = 16, 64
"""Limits of what is compared with the known names: the number of unknown ones, and their characters."""
ALIKE = 0.75
"""Likeness of two names (0 to 1) from which one is taken for a misspelling of the other."""


class UnsupportedField(ValueError):
    """A field would change the answer, and this server cannot do what it asks."""

    def __init__(self, message: str, field: str, code: str = "unknown_parameter") -> None:
        """``code``: OpenAI's name for the kind of mistake."""
        super().__init__(message)
        self.field = field
        self.code = code


def check_fields(
    fields: Mapping[str, Any],
    supported: Collection[str],
    elsewhere: Collection[str] = (),
    report: Callable[[str], None] = lambda name: None,
    *,
    unsupported: Mapping[str, tuple[Any, ...]] = NO_EFFECT,
    harmless: Collection[str] = HARMLESS,
    path: str = "",
) -> None:
    """Refuse fields that would change the answer.

    Args:
        fields: The fields of a request, or of an object in it, by name.
        supported: Names of the fields that the route has.
        elsewhere: Names of the fields that other routes have.
        report: Called with the name of each field that is ignored and might mean something. Of an object in
            a list, it has no number: ``messages[].priority``.
        unsupported: Fields that are known and not supported, with the values that have no effect.
        harmless: Names of fields that cannot change the answer.
        path: Where the object is, such as ``messages[0]``.

    Raises:
        UnsupportedField: a field is not supported or misspelt. The message names it and says what to do.
    """
    inside = f"{path}." if path else ""
    unknown = [name for name in fields if name not in supported and name not in harmless]
    if len(unknown) > MAX_UNKNOWN + len(unsupported):
        raise UnsupportedField(
            f"{path or 'the body'} has {len(unknown)} fields that this server does not have, such as "
            f"{unknown[0][:64]!r}: leave them out",
            inside + unknown[0][:64],
        )
    for name in unknown:
        value = fields[name]
        if value is None:
            continue
        where = inside + name[:64]
        if name in unsupported:
            _check_value(where, value, unsupported[name])
        elif name in elsewhere:
            raise UnsupportedField(f"{where} is a field of another route: leave it out", where)
        elif alike := _alike(name[:MAX_NAME].lower(), (*supported, *unsupported)):
            raise UnsupportedField(f"there is no field {where!r}: did you mean {alike}?", where)
        else:
            report(re.sub(r"\[\d+\]", "[]", inside) + name)


@lru_cache(256)
def _alike(name: str, known: tuple[str, ...]) -> str | None:
    """Return the known name that ``name`` may be a misspelling of. Remembered: each message may have it."""
    return next(iter(get_close_matches(name, known, 1, ALIKE)), None)


def _check_value(where: str, value: Any, neutral: tuple[Any, ...]) -> None:
    if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
        return
    import msgspec

    values = " or ".join(msgspec.json.encode(one).decode() for one in neutral)
    remedy = f"leave it out or set it to {values}" if values else "leave it out"
    if where in INSTEAD:
        remedy += f"; chats have {INSTEAD[where]} instead"
    code = "unsupported_value" if values else "unsupported_parameter"
    raise UnsupportedField(f"{where} is not supported: {remedy}", where, code)
