"""Checks the layers in docs/architecture.md: no circular imports, and no imports from a higher layer.

Imports inside functions count too. Imports only for type checking do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "fgengine": (
        (
            *(
                "settings",
                "config",
                "request",
                "adjustment",
                "grammar",
                "matching",
                "prompt_logprobs",
                "clock",
                "files",
                "child",
                "extras",
                "cache",
                "machine_load",
                "units",
                "quantities",
                "json_problems",
                "invalid_param",
            ),
        ),
        (
            *("model.shape", "model.hf_config", "model.catalog", "model.fetch", "model.store"),
            *("model.dummy_tokenizer", "model.gguf_convert", "model.files", "model.tokenizer_files"),
        ),
        ("kv", "plan"),
        (
            *("cost", "work", "speed", "physics", "profile", "profile_fit", "profile_grid"),
            *("devices", "efficiency", "analytic"),
        ),
        ("scheduling", "preflight"),
        ("simulation",),
        ("ops", "model", "ceilings"),
        ("execution",),
        ("profiler", "profile_cache", "quick_speed", "startup", "emulation"),
        ("engine", "text"),
        ("server", ""),
    ),
    "fgbench": (
        ("exit_codes", "metrics"),
        ("workload",),
        ("spec",),
        ("results", "exit_status", "machine", "training"),
        ("client",),
        ("backends",),
        ("report",),
        ("live",),
        ("benchmark",),
        ("sweeping",),
        ("reproduction",),
        ("cli",),
        ("__main__", ""),
    ),
}
"""Modules and folders of each package, from the lowest to the highest layer. If several names match a module,
the longest one counts."""


def modules(package: str) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }


MODULES = {package: modules(package) for package in LAYERS}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the known modules that a file imports."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names if alias.name in known)
            elif isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    inner = f"{child.module}.{alias.name}"
                    if inner in known:
                        yield inner
                    elif child.module in known:
                        yield child.module
            else:
                yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


def graph(package: str) -> dict[str, set[str]]:
    known = MODULES[package]
    return {name: set(imports(path, known)) - {name} for name, path in known.items()}


def layer(module: str) -> int:
    package, _, inner = module.partition(".")
    matching = [
        (len(name), number)
        for number, names in enumerate(LAYERS[package])
        for name in names
        if inner == name or name == "" or inner.startswith(f"{name}.")
    ]
    return max(matching)[1]


@pytest.mark.parametrize("package", LAYERS)
@pytest.mark.slow
def test_there_are_no_circular_imports(package: str) -> None:
    try:
        tuple(TopologicalSorter(graph(package)).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", LAYERS)
@pytest.mark.slow
def test_no_module_imports_from_a_higher_layer(package: str) -> None:
    upwards = [
        f"{name} imports {other}"
        for name, others in graph(package).items()
        for other in others
        if layer(other) > layer(name)
    ]
    assert upwards == []


def test_fgengine_does_not_import_fgbench() -> None:
    known = MODULES["fgbench"]
    found = [(name, list(imports(path, known))) for name, path in MODULES["fgengine"].items()]
    assert [name for name, others in found if others] == []


def test_every_module_is_named_in_a_layer() -> None:
    """No module is in the last layer only because no name matches it."""
    for package, known in MODULES.items():
        named = [name for names in LAYERS[package] for name in names if name]
        for module in known:
            inner = module.partition(".")[2]
            assert inner == "" or any(inner == n or inner.startswith(f"{n}.") for n in named), module
