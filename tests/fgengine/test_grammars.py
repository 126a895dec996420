"""Answers in grammars: whatever the logits are, an answer that ends by itself is valid.

The model's weights are random, and it has a token for each byte and some for pieces of text.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from fgengine.config import EngineConfig
from fgengine.engine import Engine, RequestRefused
from fgengine.execution.adjusting import adjust
from fgengine.grammar import MAX_GRAMMAR_BYTES, Grammar
from fgengine.matching import GrammarError, Grammars
from fgengine.model.store import tokenizer_of
from fgengine.ops.reference import TorchOps
from fgengine.request import Request, SamplingParams
from fgengine.text import TextCodec

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))
REGEX = Grammar("regex", "(yes|no){2,3}, [0-9]{4}")
LARK = Grammar("lark", 'start: sum\nsum: NUMBER (("+" | "-") NUMBER){1,3} "="\nNUMBER: /[1-9][0-9]{0,2}/')
EOS = 2


def is_json(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


VALID: dict[Grammar, Callable[[str], Any]] = {
    JSON: is_json,
    REGEX: re.compile("(yes|no){2,3}, [0-9]{4}").fullmatch,
    LARK: re.compile(r"[1-9][0-9]{0,2}([+-][1-9][0-9]{0,2}){1,3}=").fullmatch,
}


def config_of(model: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(
        model=str(model),
        use_dummy_weights=True,
        device="cpu",
        dtype="float32",
        **{"policy": "fcfs", "num_device_blocks": 300, **settings},
    )


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.from_config(config_of(tiny_model))


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> TextCodec:
    return TextCodec.without_chats(tokenizer_of(config_of(tiny_model)))


def params(grammar: Grammar | None, **more: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 400, "temperature": 0.0, "grammar": grammar, **more})


def answer(request: Request) -> list[int]:
    return list(request.tokens[request.prompt_len :])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("grammar", list(VALID), ids=lambda grammar: grammar.kind)
def test_answers_are_valid(engine: Engine, codec: TextCodec, grammar: Grammar, temperature: float) -> None:
    prompts = [[5, 9, 200], [7], [100, 4, 3, 1, 90]]
    for seed in range(4):
        for request in engine.generate(prompts, params(grammar, temperature=temperature, seed=seed)):
            text = codec.decode(answer(request))
            if request.finish_reason == "length":  # whitespace and digits can go on for long
                assert request.num_generated == 400
            else:
                assert request.finish_reason == "stop"
                assert answer(request)[-1] == EOS
                assert VALID[grammar](text), text


def test_every_kind_of_answer_ends_by_itself(engine: Engine) -> None:
    for grammar in VALID:
        reasons = [
            engine.generate([[3]], params(grammar, temperature=5.0, seed=seed))[0].finish_reason
            for seed in range(4)
        ]
        assert "stop" in reasons


def test_an_answer_ends_when_nothing_else_may_follow(engine: Engine, codec: TextCodec) -> None:
    (request,) = engine.generate([[5]], params(Grammar("regex", "abc"), logit_bias=((EOS, -100.0),)))
    assert (codec.decode(answer(request)), request.finish_reason) == ("abc", "stop")


def test_eos_is_allowed_exactly_when_the_answer_is_complete(engine: Engine) -> None:
    eager = ((EOS, 100.0),)
    (request,) = engine.generate([[5]], params(Grammar("regex", "[ab]{3,5}"), logit_bias=eager))
    assert answer(request)[-1] == EOS
    assert len(answer(request)) == 4
    (request,) = engine.generate([[5]], params(Grammar("regex", "(ab)?"), logit_bias=eager))
    assert (answer(request), request.finish_reason) == ([EOS], "stop")


def test_max_tokens_may_end_an_answer_before(engine: Engine) -> None:
    (request,) = engine.generate([[5]], params(REGEX, max_tokens=3))
    assert (len(answer(request)), request.finish_reason) == (3, "length")


def test_biases_cannot_break_a_grammar(engine: Engine, codec: TextCodec) -> None:
    biases = ((codec.encode("x", special_tokens=False)[0], 100.0),)
    (request,) = engine.generate([[5]], params(REGEX, logit_bias=biases, frequency_penalty=-2.0))
    assert VALID[REGEX](codec.decode(answer(request)))


def test_log_probabilities_are_those_of_the_model(engine: Engine) -> None:
    plain = params(None, max_tokens=1, logprobs=True, top_logprobs=5)
    (free,) = engine.generate([[5, 6]], plain)
    (bound,) = engine.generate([[5, 6]], replace(plain, grammar=REGEX))
    assert bound.top_logprobs == free.top_logprobs
    assert bound.logprobs[0] <= free.logprobs[0]


def mixed() -> tuple[list[list[int]], list[SamplingParams]]:
    """Return prompts and their parameters: three in four with a grammar, some greedy and some drawn."""
    source = random.Random(1)
    prompts = [[source.randrange(3, 512) for _ in range(n)] for n in (1, 8, 30, 16, 23, 37, 5, 12)]
    grammars = [JSON, REGEX, None, LARK, JSON, None, LARK, JSON]
    wanted = [
        params(grammar, max_tokens=60, temperature=at % 3 * 0.7, seed=at)
        for at, grammar in enumerate(grammars)
    ]
    wanted[0] = replace(wanted[0], frequency_penalty=0.5)
    return prompts, wanted


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[list[int]]:
    prompts, wanted = mixed()
    return [answer(engine.generate([prompt], one)[0]) for prompt, one in zip(prompts, wanted, strict=True)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("settings", "counter"),
    [
        ({}, ""),
        ({"offloading": "recompute", "num_device_blocks": 10}, "recomputed_tokens"),
        ({"num_device_blocks": 10}, "offloaded_blocks"),
        ({"chunked_prefill": True, "max_tokens_per_batch": 16}, ""),
    ],
    ids=["ample", "recompute", "offload", "chunked"],
)
def test_the_same_answer_in_any_batch(
    tiny_model: Path, expected: list[list[int]], settings: dict[str, Any], counter: str, overlap: bool
) -> None:
    small = {"policy": "sj-mlfq", "max_batch_size": 3, "admission": "eager", "starvation_limit": 0.002}
    engine = Engine.from_config(config_of(tiny_model, **{**small, **settings}))
    engine.overlap = overlap
    prompts, wanted = mixed()
    requests = [
        engine.add(f"{n}", prompt, one) for n, (prompt, one) in enumerate(zip(prompts, wanted, strict=True))
    ]
    while engine.has_work:
        engine.step()
    assert [answer(request) for request in requests] == expected
    if counter:
        assert engine.stats()[counter] > 0
    engine.close()


def test_a_failure_during_a_step_ends_only_that_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = engine.add("other", [7, 8], params(REGEX))
    failing = engine.add("failing", [5], params(JSON))
    engine.step()
    matcher = failing.adjustment.matcher  # type: ignore[union-attr]
    assert matcher is not None
    assert not matcher._matcher.consume_token(500)  # what a step limit does: the matcher is in an error state
    while engine.has_work:
        engine.step()
    assert failing.finish_reason == "error"
    assert failing.failure
    assert other.finish_reason == "stop"
    assert not other.failure


def test_a_step_that_exceeds_the_limits_is_a_failure(
    codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgengine import matching

    tokenizer = codec.tokenizer
    grammar = Grammar("lark", 'start: "x" (/[a-z]*foo[a-z]{30}/ | /[a-z]*bar[a-z]{30}/)')
    grammars = Grammars(lambda: tokenizer, vocab_size=512, eos_token_ids=[EOS])
    monkeypatch.setitem(matching.LIMITS, "max_lexer_states", 60)
    matcher = grammars.matcher(grammar, 1)
    tokens = [3, *codec.encode("x" + "foobar" * 30, special_tokens=False)]
    for end in range(1, len(tokens)):
        mask = matcher.allowed(tokens, end)
        if matcher.failure:
            break
    assert "state" in matcher.failure
    assert [at * 8 + bit for at, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1] == [EOS]
    assert matcher.allowed(tokens, len(tokens)) == mask


@pytest.mark.parametrize(("vocab_size", "eos"), [(512, 2), (700, 2), (509, 2)])
def test_only_tokens_of_tokenizer_and_model_are_allowed(codec: TextCodec, vocab_size: int, eos: int) -> None:
    grammars = Grammars(lambda: codec.tokenizer, vocab_size=vocab_size, eos_token_ids=[eos, 10_000])
    one = params(Grammar("regex", "(.|\n)*"))
    request = Request.new("r", [5], one, 0.0)
    assert request.adjustment is not None
    request.adjustment.matcher = grammars.matcher(one.grammar, 1)  # type: ignore[arg-type]
    logits = torch.zeros(1, vocab_size)
    adjust(TorchOps(), logits, [request], [0], [eos])
    allowed = set(torch.nonzero(logits[0] == 0).flatten().tolist())
    assert eos in allowed
    assert all(codec.token_bytes(token) for token in allowed - {eos})
    assert all(token < 512 for token in allowed - {eos})
    assert len(allowed) > 100


BAD = {
    "no JSON": Grammar("json_schema", "{"),
    "no schema": Grammar("json_schema", "5"),
    "type": Grammar("json_schema", '{"type": "strin"}'),
    "keyword": Grammar("json_schema", '{"type": "array", "uniqueItems": true}'),
    "lenient": Grammar("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}'),
    "other document": Grammar("json_schema", '{"$ref": "http://127.0.0.1:9/a.json"}'),
    "file": Grammar("json_schema", '{"$ref": "file:///etc/passwd"}'),
    "contradiction": Grammar("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'),
    "endless": Grammar("json_schema", '{"$ref": "#"}'),
    "regex": Grammar("regex", "(a|b"),
    "look-ahead": Grammar("regex", "(?=a)b"),
    "lark": Grammar("lark", "start: foo"),
    "other notation": Grammar("lark", 'root ::= "a"'),
    "deep": Grammar("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "deep schema": Grammar("json_schema", '{"items":' * 3000 + "{}" + "}" * 3000),
    "doubling": Grammar(
        "lark", "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "a"'
    ),
}


@pytest.mark.parametrize("grammar", BAD.values(), ids=BAD)
def test_a_bad_grammar_is_refused_by_name(engine: Engine, grammar: Grammar) -> None:
    with pytest.raises(RequestRefused, match=r"^grammar ") as error:
        engine.add("bad", [5], params(grammar))
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)
    assert not engine.has_work


def test_unknown_keywords_are_annotations(engine: Engine) -> None:
    grammar = Grammar("json_schema", '{"const": 5, "x-color": "red", "title": "t", "foo": [1]}')
    assert engine.generate([[5]], params(grammar))[0].finish_reason == "stop"


def test_a_grammar_has_a_maximum_size() -> None:
    Grammar("regex", "a" * MAX_GRAMMAR_BYTES)
    for text in ("a" * (MAX_GRAMMAR_BYTES + 1), "é" * (MAX_GRAMMAR_BYTES // 2 + 1), "a" * 1_000_000):
        with pytest.raises(ValueError, match="grammar has more than 65536 bytes"):
            Grammar("regex", text)


@pytest.mark.parametrize("more", [{"ignore_eos": True}, {"min_tokens": 2}])
def test_what_contradicts_a_grammar_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(more))} contradicts grammar"):
        params(REGEX, **more)


def test_a_model_without_eos_takes_no_grammar(codec: TextCodec) -> None:
    grammars = Grammars(lambda: codec.tokenizer, vocab_size=512, eos_token_ids=[600])
    with pytest.raises(GrammarError, match="grammar needs a model with an EOS token"):
        grammars.matcher(REGEX, 1)
    grammars = Grammars(lambda: codec.tokenizer, vocab_size=700, eos_token_ids=[650])
    with pytest.raises(GrammarError, match="this model's tokenizer: it does not have the model's EOS token"):
        grammars.matcher(REGEX, 1)


def test_without_the_package_the_message_says_how_to_install_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgengine import extras

    engine = Engine.from_config(config_of(tiny_model))
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "llguidance")
    reason = r"grammar needs llguidance.*pip install 'fgbench\[engine\]'"
    with pytest.raises(RequestRefused, match=reason) as error:
        engine.add("r", [5], params(REGEX))
    assert error.value.field == "grammar"
    engine.close()


def test_an_engine_without_logits_refuses_grammars() -> None:
    engine = Engine.from_config(EngineConfig(model="smollm2-135m", device_spec="h100-sxm"))
    with pytest.raises(RequestRefused, match="grammar needs the model's logits"):
        engine.add("r", [5], params(REGEX))
    engine.close()


def test_a_prepared_grammar_needs_no_preparation(engine: Engine) -> None:
    one = params(Grammar("regex", "prepared"))
    job = engine.prepare(one)
    assert job is not None
    job()
    assert engine.prepare(one) is None
    assert engine.prepare(params(None)) is None


def test_only_the_last_grammars_are_kept(codec: TextCodec) -> None:
    from fgengine.matching import COMPILED

    grammars = Grammars(lambda: codec.tokenizer, vocab_size=512, eos_token_ids=[EOS])
    several: Sequence[Grammar] = [Grammar("regex", f"a{n}") for n in range(COMPILED + 1)]
    for grammar in several:
        grammars.compile(grammar)
    assert [grammars.known(grammar) for grammar in several] == [False] + [True] * COMPILED
