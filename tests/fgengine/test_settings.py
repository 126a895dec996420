"""The descriptions of settings: bounds, choices, command-line arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from fgengine.config import EngineConfig
from fgengine.settings import Setting, as_arguments, changed, check, described


@dataclass(frozen=True, kw_only=True)
class Example:
    count: Annotated[int, Setting("How many.", "Group", unit="things", ge=1, le=9)] = 3
    share: Annotated[float | None, Setting("Of all.", "Group", gt=0, le=1)] = None
    seconds: Annotated[float, Setting("For so long.", "Time", gt=0, finite=True)] = 1.0
    mode: Annotated[Literal["slow", "fast"] | None, Setting("How.", "Group")] = None
    size: Annotated[int, Setting("How large.", "Group", choices=(8, 16))] = 8
    loud: Annotated[bool, Setting("Say more.", "Group", first=True)] = False
    path: Annotated[Path | None, Setting("Where.", "Group")] = None
    unseen: int = 0

    def __post_init__(self) -> None:
        check(self)


def test_described_returns_the_fields_with_descriptions() -> None:
    found = {one.name: one for one in described(Example)}
    assert list(found) == ["count", "share", "seconds", "mode", "size", "loud", "path"]
    assert (found["count"].flag, found["count"].default, found["count"].setting.unit) == (
        "--count",
        3,
        "things",
    )
    assert found["mode"].choices == ("slow", "fast")
    assert found["size"].choices == (8, 16)
    assert found["count"].choices == ()
    assert found["loud"].setting.first


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, r"^count must be at least 1, not 0 \(things\)$"),
        ({"count": 10}, "count must be at most 9, not 10"),
        ({"share": 0.0}, "^share must be above 0, not 0.0$"),
        ({"share": math.nan}, "share must be above 0, not nan"),
        ({"seconds": math.inf}, "seconds must be finite, not inf"),
        ({"seconds": math.nan}, "seconds must be above 0, not nan"),
        ({"mode": "quick"}, "^mode must be slow or fast, not quick$"),
        ({"size": 9}, "^size must be 8 or 16, not 9$"),
    ],
)
def test_a_value_out_of_bounds_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Example(**values)  # type: ignore[arg-type]


def test_the_bounds_themselves_are_allowed() -> None:
    Example(count=1, share=1.0)
    Example(count=9, mode="fast", size=16)


def test_changed_returns_the_settings_that_differ_from_the_defaults() -> None:
    assert changed(Example()) == {}
    assert changed(Example(count=3, loud=True, share=0.5)) == {"share": 0.5, "loud": True}
    assert as_arguments(Example(loud=True, share=0.5, path=Path("a b"))) == [
        "--share=0.5",
        "--loud",
        "--path=a b",
    ]


def test_every_setting_of_the_engine_is_described() -> None:
    assert {one.name for one in described(EngineConfig)} == set(EngineConfig.__dataclass_fields__)
    for one in described(EngineConfig):
        assert one.setting.help.endswith("."), one.name
