"""The profile file, the fit of the cost model, and the check against physical limits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from fgengine.cost import CostModel
from fgengine.model.catalog import shape_of
from fgengine.physics import Ceilings, floor_of, impossible, layer_parameters
from fgengine.profile import Profile, file_name, shape_key
from fgengine.profile_fit import fit
from fgengine.profile_grid import TimedStep

OPT_13B = shape_of("opt-13b")
A100 = Ceilings(bytes_per_second=1.6e12, flops_per_second=250e12)


def profile_of(points: list[TimedStep], cost: CostModel) -> Profile:
    return Profile(
        model="opt-13b",
        shape=shape_key(OPT_13B),
        device="A100",
        dtype="float16",
        cost=cost,
        ceilings=A100,
        points=tuple(points),
        versions={"torch": "2.13.0"},
        measured="2026-01-01T00:00:00+00:00",
    )


VALID = profile_of(
    [
        TimedStep(128, 0, 0, 0.030, 5),
        TimedStep(512, 0, 0, 0.075, 5, held_out=True),
        TimedStep(1024, 0, 0, 0.140, 5),
        TimedStep(0, 1, 128, 0.020, 5),
        TimedStep(0, 16, 512, 0.026, 5),
    ],
    CostModel(step=0.02, prefill_token=1.2e-4, decode_request=1e-4, decode_context=5e-7),
)


def test_the_parameters_that_every_token_uses() -> None:
    assert layer_parameters(OPT_13B) == pytest.approx(12.6e9, rel=0.01)
    llama = shape_of("llama-3-8b")  # two tables of 128256 x 4096, not tied
    assert layer_parameters(llama) == llama.num_parameters - 2 * 128256 * 4096


def test_the_floor_is_bytes_for_a_decode_and_arithmetic_for_a_prompt() -> None:
    ceilings = Ceilings(1.0, 1.0)  # so that seconds are bytes and operations
    decode = floor_of([(99, 1)], OPT_13B, 2, ceilings)
    weights = layer_parameters(OPT_13B) + OPT_13B.vocab_size * OPT_13B.hidden_size
    assert decode.reading == 2 * weights + 100 * OPT_13B.kv_bytes_per_token(2)
    assert decode.computing == 2 * weights + 4 * 40 * 40 * 128 * 100
    prompt = floor_of([(0, 1000)], OPT_13B, 2, A100)
    assert prompt.seconds == prompt.computing > prompt.reading
    assert floor_of([(99, 1)], OPT_13B, 2, A100).seconds == pytest.approx(0.0160, rel=0.02)


def test_the_artifacts_profile_is_refused() -> None:
    """Defect 10: no prefill in the shipped profile took over 2.5 ms, so every job joined queue 0."""
    shipped = profile_of(
        [TimedStep(n, 0, 0, 0.0025, 1) for n in (64, 256, 1024)] + [TimedStep(0, 1, 64, 0.010, 1)],
        CostModel(step=0.0025),
    )
    problems = shipped.implausible(OPT_13B)
    assert any("1024 tokens in 1 requests cannot take 2.5 ms, because the arithmetic" in p for p in problems)
    with pytest.raises(ValueError, match=r"cannot be true.*fgbench profile"):
        shipped.require(shape=OPT_13B, device="A100", dtype="float16")


def test_an_impossible_fit_is_refused_even_if_its_points_are_possible() -> None:
    wrong = replace(VALID, cost=CostModel(step=0.001))
    assert wrong.implausible(OPT_13B)
    assert not VALID.implausible(OPT_13B)


def test_the_step_closest_to_its_floor_is_found() -> None:
    point, times = VALID.closest_to_floor(OPT_13B)
    assert point == VALID.points[3]  # one decode: 16 ms of reading, measured 20 ms
    assert times == pytest.approx(0.020 / 0.0160, rel=0.02)


def test_the_tolerance_is_0_7_times_the_floor() -> None:
    floor = floor_of([(0, 512)], OPT_13B, 2, A100).seconds
    assert not impossible([([(0, 512)], 0.71 * floor)], OPT_13B, 2, A100)
    assert impossible([([(0, 512)], 0.69 * floor)], OPT_13B, 2, A100)


def test_a_saved_profile_is_loaded_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.json"
    VALID.save(path)
    assert Profile.load(path) == VALID
    assert list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text())["median_error"] == pytest.approx(VALID.median_error)
    assert VALID.median_error == pytest.approx(abs((0.02 + 512 * 1.2e-4) / 0.075 - 1))


def test_a_profile_without_held_out_points_has_no_error(tmp_path: Path) -> None:
    bare = replace(VALID, points=VALID.points[:1])
    assert math.isnan(bare.median_error)
    bare.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == bare


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 2}, "not a profile of version 1"),
        ({"points": []}, "it must hold 1 to"),
        (
            {"points": [{"prefill_tokens": 1, "decode_requests": 0, "context_tokens": 0, "seconds": 0}]},
            "above 0",
        ),
        ({"points": [{"tokens": 1}]}, "tokens"),
        ({"cost": {"step": -1.0}}, "step must be a number >= 0"),
        ({"cost": None}, "not a usable profile"),
        ({"ceilings": {"bytes_per_second": 0.0, "flops_per_second": 1.0}}, "above 0"),
        ({"dtype": "int3"}, "dtype int3 is unknown"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, damage: dict[str, object], message: str
) -> None:
    path = tmp_path / "profile.json"
    VALID.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(ValueError, match=message) as raised:
        Profile.load(path)
    assert "profile.json" in str(raised.value)


def test_a_missing_invalid_or_incomplete_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ValueError, match=r"cannot read the profile .*profile\.json"):
        Profile.load(path)
    path.write_text("\x80\x04pickled")
    with pytest.raises(ValueError, match="not a usable profile"):
        Profile.load(path)
    VALID.save(path)
    data = json.loads(path.read_text())
    del data["device"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="'device' is missing"):
        Profile.load(path)


def test_a_profile_of_another_model_device_or_dtype_is_refused() -> None:
    VALID.require(shape=OPT_13B, device="A100", dtype="float16")
    with pytest.raises(ValueError, match="another model"):
        VALID.require(shape=shape_of("opt-125m"), device="A100", dtype="float16")
    with pytest.raises(ValueError, match="device A100, not H100"):
        VALID.require(shape=OPT_13B, device="H100", dtype="float16")
    with pytest.raises(ValueError, match="dtype float16, not bfloat16"):
        VALID.require(shape=OPT_13B, device="A100", dtype="bfloat16")


def test_file_names_have_no_special_characters() -> None:
    assert file_name("/models/My Model", "AMD EPYC(R), 2 threads", "bfloat16") == (
        "my-model-amd-epyc-r-2-threads-bfloat16.json"
    )


def test_the_fit_never_has_negative_or_decreasing_costs() -> None:
    """For data that gets faster with more work, plain least squares would give a negative coefficient."""
    points = [TimedStep(n, 0, 0, seconds, 1) for n, seconds in ((16, 0.3), (64, 0.2), (256, 0.1))]
    points += [TimedStep(0, b, 64, 0.1 / b, 1) for b in (1, 2, 4)]
    cost = fit(points, 1e9)
    assert all(value >= 0 for value in cost.to_dict().values())
    seconds = [cost.prefill_seconds(n) for n in (2, 16, 64, 256)]
    assert all(earlier <= later for earlier, later in pairwise(seconds))


def test_the_fit_weighs_relative_errors() -> None:
    """One long step must not dominate the short ones."""
    points = [TimedStep(0, 1, 32, 0.010, 1), TimedStep(0, 1, 64, 0.010, 1), TimedStep(1000, 0, 0, 9.0, 1)]
    points += [TimedStep(1500, 0, 0, 15.0, 1)]
    assert fit(points, 1e9).min_iteration_seconds == pytest.approx(0.010, rel=0.1)
