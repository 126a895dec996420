"""That the checks of whole models can tell right from wrong, on every shape that a GPU is tried with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu import correctness
from gpu.correctness import SHAPES
from gpu.setting import TINY, Setting


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A CPU, and the prompts of a GPU."""
    monkeypatch.setattr(correctness, "TINY_LENGTHS", correctness.LENGTHS)
    return Setting(torch.device("cpu"), TINY, tmp_path)


@pytest.mark.parametrize("name", SHAPES)
def test_no_model_says_the_same_whatever_it_is_asked(setting: Setting, name: str) -> None:
    right, found = correctness._tokens_differ(setting, SHAPES[name])
    assert right, found


def test_what_the_prompts_hold_is_no_answer(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    same = [[*prompt, 7, 7, 7] for prompt in correctness._prompts(setting)]
    monkeypatch.setattr(correctness, "_alone", lambda *_: same)
    assert correctness._tokens_differ(setting, SHAPES["opt, head size 80"]) == (False, "1 different tokens")


def test_only_nearly_equal_logits_excuse_another_token(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES["opt, head size 80"]
    alone = correctness._alone(setting, shape)[1]
    other = [*alone[:-2], (alone[-2] + 1) % 512, alone[-1]]
    assert not correctness._part_at_a_tie(setting, shape, other, alone)
    monkeypatch.setattr(correctness, "TIE", 100.0)
    assert correctness._part_at_a_tie(setting, shape, other, alone)
