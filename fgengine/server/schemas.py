"""The bodies that clients may post, the checks of their values, and the conversion to SamplingParams.

Fields that a route does not have are in ``fields``: none that would change the answer is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from fgengine.grammar import Grammar
from fgengine.invalid_param import InvalidParam
from fgengine.request import MAX_BIASES, SamplingParams
from fgengine.scheduling.refusal import RequestRefused
from fgengine.server.fields import (
    UnsupportedField,
)
from fgengine.server.structured import StructuredBody
from fgengine.server.tools import (
    MAX_PAST_CALLS,
    Tool,
    ToolCall,
    ToolChoice,
    WantedCalls,
    arguments_of,
    shown_tools,
    wanted_calls,
)

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 256
MAX_MESSAGES = 4096
MAX_USER_CHARACTERS = 256
MAX_LOGPROBS = 20


Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer of 64 bits. JSON has no limit, but the channel to the engine has."""


class BadRequestError(ValueError):
    """A request is invalid. The message is a sentence; ``field`` is the invalid field, if there is one.

    ``code`` is OpenAI's name for the kind of mistake. invalid_type, invalid_value: a field has a type or a
    value that it cannot have. missing_required_parameter, unknown_parameter, unsupported_parameter,
    unsupported_value: a field is missing, unknown, or known and not supported. context_length_exceeded:
    prompt and answer are longer than the model's context.
    """

    def __init__(self, message: str, field: str | None = None, code: str | None = "invalid_value") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


@contextmanager
def refused_by_name() -> Iterator[None]:
    """Raise BadRequestError in place of another error that names a field."""
    try:
        yield
    except InvalidParam as error:
        raise BadRequestError(str(error), error.field) from None
    except UnsupportedField as error:
        raise BadRequestError(str(error), error.field, error.code) from None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wants of its answers, besides the sampling."""

    n: int = 1
    """Answers to each prompt."""
    best_of: int = 1
    """Answers that are generated for each prompt; the n most probable ones are given."""
    logprobs: int | None = None
    """How many alternatives are listed for each token; None: no list."""
    echo: bool = False
    """Whether the text begins with the prompt's."""
    no_output: bool = False
    """Whether only the prompt is of interest: ``SamplingParams.no_output``. The token is dropped."""
    names_as_ids: bool = False
    """Whether lists name tokens by id."""

    @property
    def scores_prompt(self) -> bool:
        """Whether the list of log probabilities begins with the prompt's tokens."""
        return self.echo and self.logprobs is not None

    @property
    def plain(self) -> bool:
        """Whether the text of the tokens is all that is asked for."""
        return self.logprobs is None and self.best_of == self.n and not self.echo


class StreamOptions(msgspec.Struct):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class SamplingBody(StructuredBody, kw_only=True):
    """The fields that all routes share. None means the default of ``SamplingParams``."""

    model: str | None = None
    max_tokens: Int | None = None
    max_completion_tokens: Int | None = None
    """OpenAI's newer name for max_tokens, which takes precedence."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    """0 and vLLM's -1 mean the complete vocabulary."""
    seed: Int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    """Token ids as strings, each with the number that is added to its logit."""
    n: Int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, msgspec.Meta(max_length=MAX_USER_CHARACTERS)] | None = None
    """OpenAI's field: the user of the request. Fair policies share the machine among users."""

    def wish(self) -> Wish:
        """Return what the answers are to contain. Raises BadRequestError for values out of range."""
        n = 1 if self.n is None else self.n
        if n < 1:
            raise BadRequestError(f"n must be at least 1, not {n}", "n")
        return Wish(n, n)

    def stops(self) -> list[str]:
        """Return the stop strings. Raises BadRequestError for too many, too long or empty ones."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS:
            raise BadRequestError(f"stop has {len(stops)} strings: give at most {MAX_STOPS}", "stop")
        if not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise BadRequestError(
                f"a stop string is empty or too long: give 1 to {MAX_STOP_CHARACTERS} characters", "stop"
            )
        return stops

    @property
    def shows_stop(self) -> bool:
        """Whether the text keeps the stop string or stop token that ended it."""
        return bool(self.include_stop_str_in_output)

    def params(self, wish: Wish, *, max_tokens: int) -> SamplingParams:
        """Return the sampling parameters. Raises BadRequestError for values out of range.

        ``max_tokens`` applies to bodies without their own limit.
        """
        if (count := len(self.stop_token_ids or ())) > MAX_STOP_TOKENS:
            raise BadRequestError(
                f"stop_token_ids has {count} ids: give at most {MAX_STOP_TOKENS}", "stop_token_ids"
            )
        fields: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": _biases(self.logit_bias or {}),
            "max_tokens": 1 if wish.no_output else self.asked_tokens(max_tokens),
            "no_output": wish.no_output,
            "logprobs": wish.logprobs is not None or wish.best_of > wish.n,
            "top_logprobs": wish.logprobs,
            "prompt_logprobs": wish.logprobs if wish.scores_prompt else None,
        }
        try:
            fields["grammar"] = self.grammar()
            return SamplingParams(**{name: value for name, value in fields.items() if value is not None})
        except InvalidParam as error:
            name = self.field_of(error.field)
            raise BadRequestError(f"{name} {error.problem}", name) from error

    def field_of(self, param: str) -> str:
        """Return the field of this body that sets a field of SamplingParams."""
        if param == "max_tokens" and self.max_completion_tokens is not None:
            return "max_completion_tokens"
        return param

    def asked_tokens(self, default: int) -> int:
        """Return the maximum number of output tokens."""
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return default if asked is None else asked


def _biases(biases: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """Return the biases by token id. Raises BadRequestError for too many, or a key that is no id."""
    if len(biases) > MAX_BIASES:
        raise BadRequestError(f"logit_bias has {len(biases)} tokens: give at most {MAX_BIASES}", "logit_bias")
    for key in biases:
        if not re.fullmatch("[0-9]{1,10}", key, re.ASCII):
            raise BadRequestError(f"logit_bias has the key {key[:64]!r}: give token ids", "logit_bias")
    return tuple((int(key), bias) for key, bias in biases.items())


class CompletionBody(SamplingBody, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[Int | str | list[Int]]
    add_special_tokens: bool | None = None
    """Whether a text gets the model's beginning-of-sequence token; by default it does."""
    logprobs: Int | None = None
    """How many of the most probable tokens are listed at each place, 0 to 20."""
    echo: bool | None = None
    best_of: Int | None = None
    return_tokens_as_token_ids: bool | None = None

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, each as text or token ids. Raises BadRequestError if they are mixed."""
        prompt: Any = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        kinds = set(map(type, prompt))
        if not kinds:
            raise BadRequestError("prompt is empty: it needs at least one token", "prompt", "empty_array")
        if kinds == {int}:
            return [prompt]
        if len(kinds) > 1:
            raise BadRequestError(
                "prompt mixes texts and token ids: give a string, a list of strings, a list of token ids or "
                "a list of such lists",
                "prompt",
                "invalid_type",
            )
        return list(prompt)

    def wish(self) -> Wish:
        n = SamplingBody.wish(self).n
        best_of = n if self.best_of is None else self.best_of
        if best_of < n:
            raise BadRequestError(f"best_of must be at least n, which is {n}, not {best_of}", "best_of")
        if best_of > n and self.stream:
            raise BadRequestError(
                "best_of cannot be streamed, because the best answers are known at the end: leave out "
                f"stream, or set best_of to {n}",
                "best_of",
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise BadRequestError(
                f"logprobs must be between 0 and {MAX_LOGPROBS}, not {self.logprobs}", "logprobs"
            )
        return Wish(
            n,
            best_of,
            self.logprobs,
            echo=bool(self.echo),
            no_output=bool(self.echo) and self.asked_tokens(16) == 0,
            names_as_ids=bool(self.return_tokens_as_token_ids),
        )

    def field_of(self, param: str) -> str:
        if param in ("top_logprobs", "prompt_logprobs"):
            return "logprobs"
        return SamplingBody.field_of(self, param)


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class TextPart(msgspec.Struct):
    """A text part of a chat message."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct):
    """A chat message."""

    role: Role
    content: str | list[TextPart] | None = None
    """None: only of an assistant that calls functions."""
    name: str | None = None
    """OpenAI's name of the participant. A template may show it."""
    tool_calls: Annotated[list[ToolCall], msgspec.Meta(max_length=MAX_PAST_CALLS)] | None = None
    """The calls of an assistant."""
    tool_call_id: str | None = None
    """Which call has the result that a tool's message is."""

    def plain(self, path: str) -> dict[str, Any]:
        """Return the message as templates take it: its text parts joined, and arguments of calls as objects.

        ``path``: where the message is, such as ``messages[0]``. Raises InvalidParam, which names the field.
        """
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        plain: dict[str, Any] = {"role": self.role, "content": text}
        if self.name is not None:
            plain["name"] = self.name
        if self.tool_call_id is not None:
            plain["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            plain["tool_calls"] = [
                _plain_call(call, f"{path}.tool_calls[{number}]")
                for number, call in enumerate(self.tool_calls)
            ]
        return plain


def _plain_call(call: ToolCall, path: str) -> dict[str, Any]:
    arguments = arguments_of(call.function.arguments, f"{path}.function.arguments")
    return {
        "id": call.id,
        "type": call.type,
        "function": {"name": call.function.name, "arguments": arguments},
    }


class ChatBody(SamplingBody, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    """How many of the most probable tokens are listed at each place, 0 to 20."""
    return_tokens_as_token_ids: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    """Whether the answer may have several calls; by default it may."""

    def wish(self) -> Wish:
        n, top = SamplingBody.wish(self).n, self.top_logprobs or 0
        if top and not self.logprobs:
            raise BadRequestError("top_logprobs needs logprobs: set logprobs to true", "top_logprobs")
        if not 0 <= top <= MAX_LOGPROBS:
            raise BadRequestError(
                f"top_logprobs must be between 0 and {MAX_LOGPROBS}, not {top}", "top_logprobs"
            )
        return Wish(
            n,
            n,
            top if self.logprobs else None,
            names_as_ids=bool(self.return_tokens_as_token_ids),
        )

    def calls(self) -> WantedCalls | None:
        """Return the calls that the answer must have; None: it is a text. Raises BadRequestError."""
        with refused_by_name():
            return wanted_calls(self.tools, self.tool_choice, self.parallel_tool_calls)

    def grammars(self) -> Iterator[Grammar]:
        yield from super().grammars()
        if (calls := self.calls()) is not None:
            yield calls.grammar

    def plain_messages(self) -> list[dict[str, Any]]:
        """Return the messages as templates take them; see ``plain``."""
        return plain(self.messages)

    def shown_tools(self) -> Sequence[Tool]:
        """Return the tools that the template shows. Raises BadRequestError if they break a limit."""
        with refused_by_name():
            return shown_tools(self.tools, self.tool_choice)


def plain(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages as templates take them.

    Raises BadRequestError if there are none or too many, or if the arguments of a call are no JSON object.
    """
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise BadRequestError(
            f"the chat has {len(messages)} messages: send 1 to {MAX_MESSAGES}",
            "messages",
            "array_above_max_length" if messages else "empty_array",
        )
    with refused_by_name():
        return [message.plain(f"messages[{number}]") for number, message in enumerate(messages)]


class GenerateBody(SamplingBody, kw_only=True):
    """The body of POST /generate (FastServe, vLLM's old api_server). The prompt is text or token ids."""

    prompt: str | list[Int] | None = None
    prompt_token_ids: list[Int] | None = None

    def one_prompt(self) -> str | list[int]:
        """Return the prompt, as text or token ids. Raises BadRequestError unless there is exactly one."""
        prompt = self.prompt if self.prompt_token_ids is None else self.prompt_token_ids
        if prompt is None or (self.prompt is not None and self.prompt_token_ids is not None):
            raise BadRequestError(
                "there must be one prompt: give either prompt or prompt_token_ids", "prompt"
            )
        return prompt


class TokenizeBody(msgspec.Struct, kw_only=True):
    """The body of POST /tokenize: a prompt or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    def shown_tools(self) -> Sequence[Tool]:
        """Return the tools that the template shows. Raises BadRequestError if they break a limit."""
        with refused_by_name():
            return shown_tools(self.tools, self.tool_choice)


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[Int]


BODIES = (CompletionBody, ChatBody, GenerateBody, TokenizeBody, DetokenizeBody)
ALL_FIELDS = frozenset(name for body in BODIES for name in body.__struct_fields__)
"""Names of the fields that any route has."""
Body = TypeVar("Body", bound=msgspec.Struct)


def refused_by_engine(reason: RequestRefused, body: SamplingBody, prompt_field: str) -> BadRequestError:
    """Return the error for a request that the engine has refused."""
    field = reason.field
    if field is not None:
        field = prompt_field if field == "prompt" else body.field_of(field)
    return BadRequestError(str(reason), field)
