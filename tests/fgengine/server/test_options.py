"""The settings of the server: values that could not do what they say are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fgengine.server.options import ServerOptions
from fgengine.settings import OutOfBounds, described

TIMES = [one for one in described(ServerOptions) if one.type is float]


@pytest.mark.parametrize("names", [(",",), ("",), (" , ", ""), (" ",)])
def test_a_list_of_names_without_a_name_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(OutOfBounds, match="served_model_name has no name") as refused:
        ServerOptions(served_model_name=names)
    assert refused.value.as_option.startswith("--served-model-name ")


def test_names_may_be_separated_by_commas_or_repeated() -> None:
    assert ServerOptions(served_model_name=("a,b ,", "c")).model_names == ("a", "b", "c")
    assert ServerOptions().model_names == ()


@pytest.mark.parametrize("name", [one.name for one in TIMES])
@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
def test_a_time_is_finite_and_in_seconds(name: str, value: float) -> None:
    (one,) = (one for one in TIMES if one.name == name)
    assert one.setting.unit == "seconds"
    options: dict[str, Any] = {name: value}
    with pytest.raises(OutOfBounds, match=name):
        ServerOptions(**options)
