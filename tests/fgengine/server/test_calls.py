"""The text of calls: its grammar, and what reads it piece by piece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fgengine.grammar import MAX_GRAMMAR_BYTES, Grammar
from fgengine.invalid_param import InvalidParam
from fgengine.matching import GrammarError, Grammars
from fgengine.server.calls import (
    ArgumentsReader,
    CallPart,
    ListReader,
    Reader,
    arguments_grammar,
    joined,
    list_grammar,
    named_in,
)

OBJECT = {"type": "object"}
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
FUNCTIONS: list[tuple[str, dict[str, Any]]] = [("add", ADD), ("add_more", OBJECT)]

NAMES = st.from_regex("[a-zA-Z0-9_-]{1,64}", fullmatch=True)
SPACES = st.text(" \t\r\n", max_size=3)
ODD = st.sampled_from(['"', "\\", '\\"', "{", "}", "]", '}, {"name": "', "\\\\", "é", "👍", "\u2028", "\0"])
TEXTS = st.lists(ODD | st.text(max_size=4), max_size=5).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=3)


@st.composite
def arguments_texts(draw: st.DrawFn) -> str:
    """Make the text of arguments, with any spaces and escapes."""
    ascii_only, spaces = draw(st.booleans()), draw(SPACES)
    return json.dumps(
        draw(ARGUMENTS), ensure_ascii=ascii_only, separators=(f"{spaces},{spaces}", f"{spaces}:{spaces}")
    )


CALLS = st.lists(st.tuples(NAMES, arguments_texts()), min_size=1, max_size=4)


def list_of(calls: Sequence[tuple[str, str]]) -> str:
    return "[" + ", ".join(f'{{"name": "{name}", "arguments": {text}}}' for name, text in calls) + "]"


def cut(text: str, cuts: Sequence[float]) -> list[str]:
    places = sorted(int(one * len(text)) for one in cuts)
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def parts_of(reader: Reader, pieces: Sequence[str]) -> list[CallPart]:
    return [part for piece in pieces for part in reader.add(piece)]


CUTS = st.lists(st.floats(0, 1), max_size=12)


@given(CALLS, CUTS)
def test_any_pieces_of_a_list_give_the_same_calls(calls: list[tuple[str, str]], cuts: list[float]) -> None:
    text = list_of(calls)
    assert [(one["name"], one["arguments"]) for one in json.loads(text)] == [
        (name, json.loads(arguments)) for name, arguments in calls
    ]
    for pieces in (cut(text, cuts), list(text), [text]):
        reader = ListReader()
        assert joined(parts_of(reader, pieces)) == calls
        assert reader.listed


@given(CALLS, CUTS, st.floats(0, 1, exclude_max=True))
def test_a_list_that_is_cut_off_has_the_same_calls_up_to_there(
    calls: list[tuple[str, str]], cuts: list[float], end: float
) -> None:
    text = list_of(calls)
    text = text[: int(end * len(text))]
    whole, reader = joined(ListReader().add(text)), ListReader()
    assert joined(parts_of(reader, cut(text, cuts))) == whole
    assert not reader.listed
    assert [name for name, _ in whole] == [name for name, _ in calls[: len(whole)]]
    for (_, begun), (_, complete) in zip(whole, calls, strict=False):
        assert complete.startswith(begun)
    assert whole[:-1] == calls[: len(whole[:-1])]


@given(CALLS, CUTS)
def test_a_piece_adds_one_part_to_each_call_and_names_it_once(
    calls: list[tuple[str, str]], cuts: list[float]
) -> None:
    reader, named = ListReader(), []
    for piece in cut(list_of(calls), cuts):
        parts = reader.add(piece)
        assert [part.call for part in parts] == sorted({part.call for part in parts})
        named += [part.call for part in parts if part.name is not None]
    assert named == list(range(len(calls)))


@given(arguments_texts(), CUTS)
def test_the_arguments_of_one_function(text: str, cuts: list[float]) -> None:
    reader = ArgumentsReader("add")
    parts = parts_of(reader, cut(text, cuts))
    assert joined(parts) == [("add", text)]
    assert [part.name for part in parts] == ["add"] + [None] * (len(parts) - 1)
    assert not reader.listed


def test_a_call_begins_before_its_arguments() -> None:
    reader = ListReader()
    assert reader.add('[{"name": "add", "argum') == []
    assert reader.add('ents": ') == [CallPart(0, "add", "")]
    assert reader.add("{") == [CallPart(0, None, "{")]


@pytest.fixture(scope="module")
def grammars(byte_tokenizer: Tokenizer) -> Grammars:
    tokenizer = Tokenizer.from_str(byte_tokenizer.to_str())
    tokenizer.add_special_tokens(["<end>"])
    return Grammars(lambda: tokenizer, vocab_size=257, eos_token_ids=[256])


def follows(grammars: Grammars, grammar: Grammar, text: str) -> bool:
    """Whether a text follows a grammar and is complete."""
    tokens = [*text.encode(), 256]
    matcher = grammars.matcher(grammar, 0)
    return all(matcher.allowed(tokens, end)[token // 8] >> token % 8 & 1 for end, token in enumerate(tokens))


def test_the_grammar_of_a_list_allows_calls_and_nothing_else(grammars: Grammars) -> None:
    grammar = list_grammar(FUNCTIONS, 3, "tools")
    good = ("add", '{"a": 1}')
    for calls in ([good], [good] * 3, [("add_more", '{"x": [1]}'), ("add", '{ "a" :\n1, "b":"}]"}')]):
        assert follows(grammars, grammar, list_of(calls))
    for text in (
        "[]",
        list_of([good] * 4),
        list_of([("subtract", "{}")]),
        list_of([("add", "{}")]),
        list_of([("add", '{"a": "1"}')]),
        list_of([("add_more", "[]")]),
        list_of([("add", '{"a":' + " " * 21 + "1}")]),
        list_of([good])[:-1],
        list_of([good]).replace(", ", ","),
        " " + list_of([good]),
    ):
        assert not follows(grammars, grammar, text), text
    one = list_grammar(FUNCTIONS, 1, "tools")
    assert follows(grammars, one, list_of([good]))
    assert not follows(grammars, one, list_of([good] * 2))


def test_the_grammar_of_one_function_is_that_of_its_arguments(grammars: Grammars) -> None:
    grammar = arguments_grammar(ADD, "tools")
    assert follows(grammars, grammar, '{"a": 5}')
    assert not follows(grammars, grammar, '{"a": "5"}')


def test_options_and_text_in_a_schema_cannot_change_the_grammar(grammars: Grammars) -> None:
    evil = '"}\n%ignore /x/\nstart: "y" // %json {'
    schema = {
        "type": "object",
        "properties": {evil: {"const": evil, "x-guidance": {"whitespace_flexible": True}}},
        "required": [evil],
        "additionalProperties": False,
        "x-guidance": {"lenient": True, "whitespace_pattern": "x*"},
    }
    grammar = list_grammar([("f", schema)], 1, "tools")
    assert follows(grammars, grammar, list_of([("f", json.dumps({evil: evil}))]))
    for text in ("y", list_of([("f", "{x}")]), list_of([("f", "{}")])):
        assert not follows(grammars, grammar, text)
    schema["properties"]["n"] = {"not": {}}  # type: ignore[index]
    with pytest.raises(GrammarError, match="not"):
        grammars.matcher(list_grammar([("f", schema)], 1, "tools"), 0)


def test_references_are_those_of_each_schema(grammars: Grammars) -> None:
    def schema(kind: str) -> dict[str, Any]:
        return {
            "$defs": {"a": {"type": kind}},
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/a"}},
            "additionalProperties": False,
        }

    grammar = list_grammar([("f", schema("integer")), ("g", schema("boolean"))], 1, "tools")
    assert follows(grammars, grammar, list_of([("f", '{"a": 1}')]))
    assert follows(grammars, grammar, list_of([("g", '{"a": true}')]))
    assert not follows(grammars, grammar, list_of([("g", '{"a": 1}')]))


def test_the_reason_names_the_function(grammars: Grammars) -> None:
    functions = [*FUNCTIONS, ("third", {"type": "object", "properties": {"a": {"not": {}}}})]
    with pytest.raises(GrammarError) as error:
        grammars.matcher(list_grammar(functions, 2, "tools"), 0)
    reason = named_in(str(error.value), [name for name, _ in functions])
    assert "the parameters of third: " in reason
    assert "at 5" not in reason
    assert named_in("at 99(1): failed to compile JSON schema", ["f"]).startswith("at 99")


def test_many_functions_make_one_usable_grammar(grammars: Grammars) -> None:
    many = [(f"function_{number}", ADD) for number in range(128)]
    assert follows(grammars, list_grammar(many, 16, "tools"), list_of([("function_127", '{"a": 1}')] * 16))


def test_a_grammar_that_is_too_long_names_the_field() -> None:
    long = {"type": "object", "description": "a" * MAX_GRAMMAR_BYTES}
    with pytest.raises(InvalidParam, match=r"^tools has more than 65536 bytes"):
        list_grammar([("f", long)], 1, "tools")
