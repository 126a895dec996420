"""Policies of other packages: by entry point, by module:Class, and the errors for broken ones."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgengine.scheduling.policy import PolicyContext, make_policy, policy_class, policy_names

SOURCE = """
from fgengine.scheduling.policy import SortedPolicy

class Longest(SortedPolicy):
    summary = "the longest prompt first"

    def key(self, request):
        return (-request.prompt_len,)

class NoPolicy:
    pass
"""

ENTRY_POINTS = """[fgengine.policies]
longest = their_policies:Longest
fcfs = their_policies:Longest
no-policy = their_policies:NoPolicy
gone = their_policies:Gone
broken = their_broken:Any
absent = their_absent:Any
"""


@pytest.fixture(autouse=True)
def _their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "their_policies.py").write_text(SOURCE)
    (tmp_path / "their_broken.py").write_text("1 / 0\n")
    info = tmp_path / "their_package-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("their_policies", None)


def test_policies_of_an_installed_package_are_found_by_name() -> None:
    names = policy_names()
    assert {"longest", "broken"} <= set(names)
    assert len(names) == len(set(names))
    assert names[0] == "static"  # built-in ones first
    policy = make_policy("longest", PolicyContext())
    assert type(policy).__module__ == "their_policies"


def test_a_package_cannot_replace_a_built_in_policy() -> None:
    assert policy_class("fcfs").__module__ == "fgengine.scheduling.fcfs"


def test_a_policy_is_found_by_module_and_class() -> None:
    assert policy_class("their_policies:Longest").__name__ == "Longest"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-policy", "their_policies:NoPolicy is not a subclass of fgengine.scheduling.policy.Policy"),
        ("their_policies:NoPolicy", "is not a subclass"),
        ("gone", "could not be loaded from their_policies:Gone: .*has no attribute 'Gone'"),
        ("broken", r"could not be loaded from their_broken:Any: ZeroDivisionError\('division by zero'\)"),
        ("their_broken:Any", "ZeroDivisionError"),
        ("absent", "could not be loaded from their_absent:Any: No module named 'their_absent'"),
        ("their_policies:", "could not be loaded"),
        (":Longest", "could not be loaded"),
        ("their_policies:SortedPolicy.key", "could not be loaded"),
        ("their_policies", "there is no policy 'their_policies'; there are static, .*longest.*, or package"),
    ],
)
def test_an_unusable_policy_is_reported_in_one_sentence(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        policy_class(name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
