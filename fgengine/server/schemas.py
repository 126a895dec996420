"""What clients may post: checked on arrival, turned into SamplingParams.

Fields we do not know are left out, as clients send many. A field we know but cannot honour is refused
unless it asks for nothing: silently ignoring it would give answers nobody asked for.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from fgengine.request import SamplingParams

MAX_BODY_BYTES = 8 * 1024**2
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 256
MAX_MESSAGES = 4096
MAX_USER_CHARACTERS = 256

NOTHING_ASKED: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "use_beam_search": False,
    "echo": False,
    "suffix": "",
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "min_p": 0,
    "min_tokens": 0,
    "logit_bias": {},
    "tools": [],
    "top_logprobs": 0,
}
"""The fields we know and do not support, with the value that asks for nothing."""


Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""JSON knows no limit; the channel to the engine does."""


class BadRequestError(ValueError):
    """The client's mistake, in a sentence; ``field`` is where, if it is one field's."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class SamplingBody(msgspec.Struct, kw_only=True):
    """The fields all our routes share; None: the default of ``SamplingParams``."""

    model: str | None = None
    max_tokens: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    """0 and vLLM's -1: the whole vocabulary."""
    seed: Int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, msgspec.Meta(max_length=MAX_USER_CHARACTERS)] | None = None
    """OpenAI's: on whose behalf. Fair policies share the machine among users."""

    def stops(self) -> list[str]:
        """Raises BadRequestError for too many, too long or empty ones."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS:
            raise BadRequestError(f"at most {MAX_STOPS} stop strings, not {len(stops)}", "stop")
        if not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise BadRequestError(f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters", "stop")
        return stops

    def params(self, *, max_tokens: int, logprobs: bool = False) -> SamplingParams:
        """``max_tokens`` is for bodies that leave it open. Raises BadRequestError for values out of range."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "seed": self.seed,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "ignore_eos": self.ignore_eos,
            "max_tokens": max_tokens if self.max_tokens is None else self.max_tokens,
        }
        if len(self.stop_token_ids or ()) > MAX_STOP_TOKENS:
            raise BadRequestError(f"at most {MAX_STOP_TOKENS} stop token ids", "stop_token_ids")
        try:
            return SamplingParams(
                logprobs=logprobs, **{name: value for name, value in given.items() if value is not None}
            )
        except ValueError as error:
            raise BadRequestError(str(error), str(error).partition(" ")[0]) from error


class CompletionBody(SamplingBody, kw_only=True):
    prompt: str | list[Int | str | list[Int]]
    logprobs: Int | None = None

    def one_prompt(self) -> str | list[int]:
        """Raises BadRequestError for several prompts."""
        prompt = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            return prompt[0]
        if isinstance(prompt, str):
            return prompt
        ids = [token for token in prompt if isinstance(token, int)]
        if len(ids) != len(prompt):
            raise BadRequestError("one prompt per request: a string or a list of token ids", "prompt")
        return ids

    def wants_logprobs(self) -> bool:
        """Raises BadRequestError for those of other tokens than the chosen one."""
        if self.logprobs not in (None, 0, 1):
            raise BadRequestError("logprobs must be 0 or 1: the chosen token's only", "logprobs")
        return self.logprobs is not None


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class Message(msgspec.Struct):
    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ChatBody(SamplingBody, kw_only=True):
    messages: list[Message]
    max_completion_tokens: Int | None = None
    """OpenAI's newer name of max_tokens."""
    logprobs: bool | None = None

    def plain_messages(self) -> list[dict[str, str]]:
        """Raises BadRequestError for none or too many."""
        if not 0 < len(self.messages) <= MAX_MESSAGES:
            raise BadRequestError(f"a chat has 1 to {MAX_MESSAGES} messages", "messages")
        return [message.plain() for message in self.messages]


class GenerateBody(SamplingBody, kw_only=True):
    """As FastServe's and vLLM's old api_server take it; the prompt as text or as token ids."""

    prompt: str | list[Int] | None = None
    prompt_token_ids: list[Int] | None = None

    def one_prompt(self) -> str | list[int]:
        """Raises BadRequestError unless there is exactly one."""
        prompt = self.prompt if self.prompt_token_ids is None else self.prompt_token_ids
        if prompt is None or (self.prompt is not None and self.prompt_token_ids is not None):
            raise BadRequestError("give the prompt either as prompt or as prompt_token_ids", "prompt")
        return prompt


Body = TypeVar("Body", bound=SamplingBody)


def read_body(raw: bytes, kind: type[Body]) -> Body:
    """Check a request's JSON body.

    Raises:
        BadRequestError: not JSON, a field of the wrong type, or one that asks for what we do not do.
    """
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    if not isinstance(fields, dict):
        raise BadRequestError("the body must be a JSON object")
    for name, nothing in NOTHING_ASKED.items():
        asked = fields.get(name)
        if asked is not None and asked != nothing:
            raise BadRequestError(
                f"{name} is not supported; leave it out or set it to {msgspec.json.encode(nothing).decode()}",
                name,
            )
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or None
        raise BadRequestError(f"{field}: {what}" if field else what, field) from error
