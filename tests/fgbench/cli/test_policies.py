"""Tests of ``fgbench policies``: the table, the JSON, and policies that cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgengine.scheduling.policy import policy_class, policy_names


def listed() -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["policies", "--json"])
    assert done.exit_code == 0, done.output
    return {policy["name"]: policy for policy in json.loads(done.stdout)}


@pytest.fixture
def _their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs a package with one policy that works and one whose module raises an error."""
    (tmp_path / "shown_policies.py").write_text(
        "from fgengine.scheduling.fcfs import FCFS\n\n\n"
        "class Last(FCFS):\n    summary = 'the last [one] first'\n    paper = 'a note'\n"
    )
    (tmp_path / "shown_broken.py").write_text("raise RuntimeError('it [bold]fell[/bold] over')\n")
    info = tmp_path / "shown_package-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shown-package\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(
        "[fgengine.policies]\nlast = shown_policies:Last\nfcfs = shown_policies:Last\n"
        "fallen = shown_broken:Any\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_table_names_every_policy_its_paper_and_its_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["policies"])
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()}
    for name in policy_names():
        assert policy_class(name).summary in rows[name]
        assert policy_class(name).paper in rows[name]
    assert "profile" in rows["sj-mlfq"]
    assert "profile" not in rows["fcfs"]


def test_json_lists_the_same_policies() -> None:
    policies = listed()
    assert list(policies) == policy_names()
    assert policies["fcfs"] == {
        "name": "fcfs",
        "summary": policy_class("fcfs").summary,
        "paper": "Orca, OSDI'22",
        "needs": [],
        "package": None,
        "error": None,
    }
    assert policies["sj-mlfq"]["needs"] == ["profile"]
    assert policies["sprpt"]["needs"] == ["profile", "predictor"]


@pytest.mark.usefixtures("_their_package")
def test_policies_of_packages_are_listed_and_broken_ones_show_their_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = listed()
    assert policies["last"]["package"] == policies["fallen"]["package"] == "shown-package 2.0"
    assert (policies["last"]["summary"], policies["last"]["error"]) == ("the last [one] first", None)
    assert "it [bold]fell[/bold] over" in policies["fallen"]["error"]
    assert policies["fallen"]["needs"] == []
    assert policies["fcfs"]["package"] is None  # a package cannot replace a built-in policy
    monkeypatch.setenv("COLUMNS", "300")
    shown = CliRunner().invoke(app, ["policies"])
    assert shown.exit_code == 0
    assert "the last [one] first (from shown-package 2.0)" in shown.stdout  # brackets are text, not markup
    assert "it [bold]fell[/bold] over" in shown.stdout


@pytest.mark.usefixtures("_their_package")
def test_a_class_that_is_named_is_listed_too() -> None:
    done = CliRunner().invoke(app, ["policies", "shown_policies:Last", "shown_policies:None", "--json"])
    assert done.exit_code == 0, done.output
    theirs, missing = json.loads(done.stdout)[-2:]
    assert (theirs["name"], theirs["summary"]) == ("shown_policies:Last", "the last [one] first")
    assert "has no attribute 'None'" in missing["error"]
