"""What is wrong with a JSON value is said in words, not in msgspec's types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest

from fgengine.json_problems import UNKNOWN, json_problem


class Inner(msgspec.Struct):
    factor: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    word: Literal["a", "b"] = "a"


class Outer(msgspec.Struct):
    size: int
    inner: Inner | None = None
    texts: list[str] = []
    code: Annotated[str, msgspec.Meta(max_length=3)] | None = None


@pytest.mark.parametrize(
    ("value", "field", "kind", "said"),
    [
        ({}, "size", "missing", "size is missing"),
        ({"size": "5"}, "size", "type", 'size is "5", but it must be a whole number'),
        ({"size": None}, "size", "type", "size is null, but it must be a whole number"),
        ({"size": {}}, "size", "type", "size is a JSON object, but it must be a whole number"),
        ({"size": 1, "inner": 3}, "inner", "type", "inner is 3, but it must be a JSON object or null"),
        (
            {"size": 1, "inner": {"factor": 0}},
            "inner.factor",
            "value",
            "inner.factor is 0, but it must be a number > 0.0",
        ),
        (
            {"size": 1, "inner": {"word": "c"}},
            "inner.word",
            "value",
            'inner.word has the value "c", which it cannot have',
        ),
        ({"size": 1, "texts": ["a", 2]}, "texts[1]", "type", "texts[1] is 2, but it must be a text"),
        (
            {"size": 1, "code": "abcd"},
            "code",
            "value",
            'code is "abcd", but it must be a text of length <= 3',
        ),
        ([], "", "type", "the value must hold a JSON object, not a list"),
    ],
)
def test_a_problem_names_the_place_the_value_and_what_it_must_be(
    value: Any, field: str, kind: str, said: str
) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(value, Outer)
    problem = json_problem(str(error.value), value)
    assert (problem.field, problem.kind, str(problem)) == (field, kind, said)


def test_a_value_that_is_not_known_is_not_quoted() -> None:
    problem = json_problem("Expected `int`, got `str` - at `$.size`", UNKNOWN)
    assert str(problem) == "size must be a whole number"
    assert str(json_problem("Expected `object`, got `array`", UNKNOWN)) == "the value must hold a JSON object"


def test_a_long_value_is_shortened() -> None:
    problem = json_problem("Expected `int`, got `str` - at `$.size`", {"size": "x" * 1000})
    assert len(str(problem)) < 150
