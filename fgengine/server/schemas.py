"""The bodies that clients may post, their checks, and the conversion to SamplingParams.

Fields that a route does not have are in ``fields``: none that would change the answer is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from fgengine.request import SamplingParams
from fgengine.server.fields import UnsupportedField, check_fields

MAX_BODY_BYTES = 8 * 1024**2
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 256
MAX_MESSAGES = 4096
MAX_USER_CHARACTERS = 256


Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer of 64 bits. JSON has no limit, but the channel to the engine has."""


class BadRequestError(ValueError):
    """A request is invalid. The message is a sentence; ``field`` is the invalid field, if there is one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class StreamOptions(msgspec.Struct):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class SamplingBody(msgspec.Struct, kw_only=True):
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
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, msgspec.Meta(max_length=MAX_USER_CHARACTERS)] | None = None
    """OpenAI's field: the user of the request. Fair policies share the machine among users."""

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

    def params(self, *, max_tokens: int, logprobs: bool = False) -> SamplingParams:
        """Return the sampling parameters. Raises BadRequestError for values out of range.

        ``max_tokens`` applies to bodies without their own limit.
        """
        fields: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "seed": self.seed,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "ignore_eos": self.ignore_eos,
            "max_tokens": next(
                asked
                for asked in (self.max_completion_tokens, self.max_tokens, max_tokens)
                if asked is not None
            ),
        }
        if (count := len(self.stop_token_ids or ())) > MAX_STOP_TOKENS:
            raise BadRequestError(
                f"stop_token_ids has {count} ids: give at most {MAX_STOP_TOKENS}", "stop_token_ids"
            )
        try:
            return SamplingParams(
                logprobs=logprobs, **{name: value for name, value in fields.items() if value is not None}
            )
        except ValueError as error:
            raise BadRequestError(str(error), str(error).partition(" ")[0]) from error


class CompletionBody(SamplingBody, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[Int | str | list[Int]]
    logprobs: Int | None = None

    def one_prompt(self) -> str | list[int]:
        """Return the prompt, as text or token ids. Raises BadRequestError if there are several."""
        prompt = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            return prompt[0]
        if isinstance(prompt, str):
            return prompt
        ids = [token for token in prompt if isinstance(token, int)]
        if len(ids) != len(prompt):
            raise BadRequestError(
                "prompt must be a string or a list of token ids: send one prompt per request", "prompt"
            )
        return ids

    def wants_logprobs(self) -> bool:
        """Whether to return log probabilities. Raises BadRequestError for those of other tokens."""
        if self.logprobs not in (None, 0, 1):
            raise BadRequestError(
                "only the chosen token's log probability is supported: set logprobs to 0 or 1", "logprobs"
            )
        return self.logprobs is not None


class TextPart(msgspec.Struct):
    """A text part of a chat message."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct):
    """A chat message."""

    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Return the message with its text parts joined."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ChatBody(SamplingBody, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = None

    def plain_messages(self) -> list[dict[str, str]]:
        """Return the messages as plain text. Raises BadRequestError if there are none or too many."""
        if not 0 < len(self.messages) <= MAX_MESSAGES:
            raise BadRequestError(
                f"the chat has {len(self.messages)} messages: send 1 to {MAX_MESSAGES}", "messages"
            )
        return [message.plain() for message in self.messages]


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


ALL_FIELDS = frozenset(
    name for body in (CompletionBody, ChatBody, GenerateBody) for name in body.__struct_fields__
)
"""Names of the fields that any route has."""
Body = TypeVar("Body", bound=SamplingBody)


def read_body(raw: bytes, kind: type[Body], report: Callable[[str], None] = lambda name: None) -> Body:
    """Parse and check a request's JSON body.

    ``report``: called with the name of each field that is ignored and might mean something.

    Raises:
        BadRequestError: the body is not a JSON object, or a field has the wrong type or is not supported.
    """
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not valid JSON ({error}): send a JSON object") from error
    except RecursionError:
        raise BadRequestError("the body is nested too deeply: send a JSON object with less nesting") from None
    if not isinstance(fields, dict):
        raise BadRequestError("the body is not a JSON object: send an object with the request's fields")
    try:
        check_fields(fields, kind.__struct_fields__, ALL_FIELDS, report)
    except UnsupportedField as error:
        raise BadRequestError(str(error), error.field) from None
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or None
        raise BadRequestError(f"{field}: {reason}" if field else reason, field) from error
