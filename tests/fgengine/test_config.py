"""Every setting has an effect."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import fgengine
from fgengine.config import EngineConfig


def test_every_setting_is_read_by_the_engine() -> None:
    read: set[str] = set()
    for file in Path(fgengine.__file__).parent.rglob("*.py"):
        if file.name == "config.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and "config" in ast.unparse(node.value):
                read.add(node.attr)
    assert {field.name for field in fields(EngineConfig)} - {"swap_space"} <= read
    assert "swap_space_bytes" in read
