"""docs/api.md describes the public names of both packages, and no others."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import fgbench
import fgengine

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (fgbench, fgengine)
    for name in package.__all__
    if not name.startswith("__")
}


def test_the_page_describes_all_public_names() -> None:
    described = re.findall(r"^::: (\S+)$", PAGE.read_text(), re.MULTILINE)
    assert len(described) == len(set(described))
    assert set(described) == set(PUBLIC)


def test_each_public_name_and_its_public_methods_have_a_docstring() -> None:
    missing = [name for name, thing in PUBLIC.items() if not inspect.getdoc(thing)]
    for name, thing in PUBLIC.items():
        if inspect.isclass(thing):
            members = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
            missing += [
                f"{name}.{key}"
                for key, value in members.items()
                if (inspect.isfunction(value) or isinstance(value, classmethod | property))
                and not inspect.getdoc(value)
            ]
    assert missing == []
