"""Structured answers from a real engine in its own process, and hostile grammars at the server."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tokenizers import Tokenizer

from fgengine.grammar import Grammar
from fgengine.request import SamplingParams
from fgengine.scheduling.refusal import QueueFull
from fgengine.server import encoding, messages
from fgengine.server.encoding import Encoder
from fgengine.server.schemas import BadRequestError
from fgengine.server.worker import Prepared, _Loop
from fgengine.text import TextCodec

COMPLETIONS = "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["city", "size", "kind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}


@pytest.fixture
def encoder(engine_encoder: Encoder) -> Encoder:
    return engine_encoder


@pytest.mark.slow
async def test_answers_follow_the_schema(serving: Any) -> None:
    async with serving(policy="sj-mlfq", max_batch_size=4) as (url, session):

        async def post(**body: Any) -> tuple[int, dict[str, Any]]:
            async with session.post(url + COMPLETIONS, json={"max_tokens": 300, **body}) as response:
                return response.status, await response.json()

        async def choices(**body: Any) -> list[dict[str, Any]]:
            status, answer = await post(**body)
            assert status == 200, answer
            return list(answer["choices"])

        async def streamed(**body: Any) -> tuple[str, str]:
            body = {"max_tokens": 300, "stream": True, **body}
            async with session.post(url + COMPLETIONS, json=body) as response:
                lines = (await response.text()).split("\n\n")
            chunks = [json.loads(line[6:]) for line in lines if line and line != "data: [DONE]"]
            parts = [chunk["choices"][0] for chunk in chunks]
            return "".join(part["text"] for part in parts), parts[-1]["finish_reason"]

        drawn = {"prompt": ["x", "hello"], "n": 4, "temperature": 3.0, "seed": 1, "response_format": FORMAT}
        answers = await choices(**drawn)
        assert len(answers) == 8
        ended = [one for one in answers if one["finish_reason"] == "stop"]
        assert len(ended) > 4
        for one in ended:
            jsonschema.validate(json.loads(one["text"]), SCHEMA)

        others = [asyncio.create_task(post(prompt="y", temperature=0, n=3)) for _ in range(4)]
        again = await choices(**drawn)  # in other batches
        assert [one["text"] for one in again] == [one["text"] for one in answers]
        await asyncio.gather(*others)

        greedy = {"prompt": "ab", "temperature": 0, "guided_regex": "(yes|no){3}-[0-9]{2}"}
        (whole,) = await choices(**greedy)
        assert re.fullmatch("(yes|no){3}-[0-9]{2}", whole["text"])
        assert whole["finish_reason"] == "stop"
        assert await streamed(**greedy) == (whole["text"], "stop")
        (cut,) = await choices(**greedy, stop="-")
        assert (cut["text"], cut["finish_reason"]) == (whole["text"].partition("-")[0], "stop")
        (short,) = await choices(**{**greedy, "max_tokens": 4})
        assert short["finish_reason"] == "length"
        assert whole["text"].startswith(short["text"])

        for options in ({"choice": ["red", 'gr"een', "blé"]}, {"grammar": 'start: "red" | "blé"'}):
            for one in await choices(prompt="q", n=6, seed=3, temperature=2.0, structured_outputs=options):
                assert one["text"] in ("red", 'gr"een', "blé")
                assert one["finish_reason"] == "stop"
        (one,) = await choices(prompt="q", temperature=0, response_format={"type": "json_object"})
        assert one["text"].lstrip().startswith("{")

        plain = await choices(prompt="q", temperature=0, logprobs=3, max_tokens=1)
        bound = await choices(prompt="q", temperature=0, logprobs=3, max_tokens=1, guided_choice=["yes"])
        assert bound[0]["text"] == "y"
        assert (
            bound[0]["logprobs"]["top_logprobs"][0].items() >= plain[0]["logprobs"]["top_logprobs"][0].items()
        )

        status, answer = await post(prompt="q", guided_regex="(a|b")
        assert (status, answer["error"]["param"]) == (400, "guided_regex")
        assert "unclosed group" in answer["error"]["message"] or "invalid regex" in answer["error"]["message"]
        assert (await choices(prompt="q", guided_regex="ok"))[0]["text"] == "ok"


def schema_of(**schema: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(schema), "response_format")


HOSTILE = {
    "minutes of compilation": schema_of(type="integer", multipleOf=9_999_999),
    "doubling of terminals": Grammar(
        "lark",
        "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "a"',
        "guided_grammar",
    ),
    "combinations": schema_of(
        allOf=[
            {"anyOf": [{"properties": {f"a{i}_{j}": {"type": "string"}}} for j in range(5)]}
            for i in range(12)
        ]
    ),
    "recursion": schema_of(
        **{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    ),
    "nesting": Grammar("regex", "(" * 20_000 + "a" + ")" * 20_000, "guided_regex"),
}


@pytest.mark.slow
@pytest.mark.parametrize("grammar", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_grammar_is_refused_by_name(
    encoder: Encoder, grammar: Grammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    await encoder.check(Grammar("regex", "start the process"))
    with pytest.raises(BadRequestError, match=grammar.field) as refused:
        await encoder.check(grammar)
    assert refused.value.field == grammar.field
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "_grammars", None)  # the answer is remembered, so no process is asked
        with pytest.raises(BadRequestError):
            await encoder.check(grammar)
    await encoder.check(Grammar("regex", "[a-z]+"))


@pytest.mark.slow
async def test_large_grammars_that_can_be_followed_are_accepted(encoder: Encoder) -> None:
    await encoder.check(schema_of(enum=[f"x{n:05}" for n in range(3000)]))
    await encoder.check(Grammar("regex", "(a{1,1000}){1,1000}"))
    await encoder.check(schema_of(type="array", minItems=5000, maxItems=100_000))
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(30):
        nested = {"type": "array", "items": nested}
    await encoder.check(schema_of(**nested))


async def test_a_grammar_that_is_too_long_is_refused(served: Any) -> None:
    large = {"enum": ["x" * 100] * 1000}
    for name, value in (
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": large}}),
        ("guided_regex", "a" * 100_000),
        ("structured_outputs", {"choice": ["x" * 1000] * 100}),
    ):
        status, answer = await served.post(COMPLETIONS, {"prompt": "a", name: value})
        assert (status, answer["error"]["param"]) == (400, name)
    assert not served.engine.params
    too_large = {"enum": ["x" * 100] * 20_000}  # 2 MB
    status, _ = await served.post(COMPLETIONS, {"prompt": "a", "guided_json": too_large})
    assert status in (400, 413)


async def test_only_so_many_grammars_wait(
    byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "MAX_WAITING_GRAMMARS", 2)
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(TextCodec(byte_tokenizer), tmp_path)
    checks = [encoder.check(Grammar("regex", f"a{n}")) for n in range(3)]
    found = await asyncio.gather(*checks, return_exceptions=True)
    assert [type(one) for one in found] == [type(None), type(None), QueueFull]
    encoder.close()


class Slow:
    """An engine that compiles when the test says so."""

    model_name, vocab_size, max_model_len, longest_step = "slow", 9, 9, 0.0
    has_work, retry_after = False, None

    def __init__(self) -> None:
        import threading

        self.compiled = threading.Event()
        self.added: list[str] = []

    def prepare(self, params: SamplingParams) -> Any:
        return self.compiled.wait if params.grammar else None

    def add(self, id: str, *_: Any, **__: Any) -> Any:
        self.added.append(id)
        return object()


def add(id: str, grammar: Grammar | None = None) -> messages.Add:
    return messages.Add(id, [1], SamplingParams(grammar=grammar), 0.0)


def test_other_commands_do_not_wait_for_a_compilation() -> None:
    import queue

    inbox: Any = queue.SimpleQueue()
    engine, sent = Slow(), []
    loop = _Loop(engine, inbox, sent.append)  # type: ignore[arg-type]
    grammar = Grammar("regex", "a")
    for command in (add("slow", grammar), add("aborted", grammar), add("plain"), messages.Abort("aborted")):
        loop._handle(command)
    assert engine.added == ["plain"]
    assert [type(event) for event in sent] == [messages.Accepted, messages.Refused]
    engine.compiled.set()
    for id in ("slow", "aborted"):
        prepared = inbox.get(timeout=10)
        assert prepared == Prepared(add(id, grammar))
        loop._handle(prepared)
    assert engine.added == ["plain", "slow"]
    assert sent[-1] == messages.Accepted("slow")


def test_a_grammar_travels_to_the_engine() -> None:
    command = add("a", Grammar("lark", "start: /é/", "guided_grammar"))
    assert messages.read_command(messages.frame(command)[messages.LENGTH_BYTES :]) == command
