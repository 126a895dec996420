"""Analytic profiles against arithmetic by hand, their file, and the memory of a device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fgengine.analytic import analytic_profile, bound_by, find_spec, knee_tokens, profile_of, table_rows
from fgengine.config import EngineConfig
from fgengine.cost import CostModel, StepShape
from fgengine.devices import DEVICES, GIB, DeviceSpec
from fgengine.efficiency import Efficiency
from fgengine.model.catalog import shape_of
from fgengine.model.shape import ModelShape
from fgengine.physics import floor_of
from fgengine.preflight import check_names
from fgengine.profile import Profile
from fgengine.settings import described
from fgengine.simulation.setup import make_cluster, pools_in_words, pools_of

DATA = Path(__file__).parents[1] / "data"
OPT_13B = shape_of("opt-13b")
PERFECT = Efficiency(bandwidth=1.0, flops=1.0, link=1.0, step_seconds=0.0, layer_seconds=0.0)


def a100(**settings: Any) -> EngineConfig:
    return EngineConfig(model="opt-13b", device_spec="a100-40gb", **settings)


def test_opt_13b_on_an_a100_by_hand() -> None:
    """40 layers of 12 x 5120 x 5120 weights; 50,272 words; 312 TFLOP/s, 1,555 GB/s."""
    cost = analytic_profile("opt-13b", OPT_13B, DEVICES["a100-40gb"], "float16", PERFECT).cost
    layers, words = 40 * 12 * 5120**2, 50_272 * 5120
    biases_and_norms = 40 * (9 * 5120 + 20_480)
    assert cost.matmul_step == pytest.approx(2 * layers / 1555e9, rel=1e-3)  # 16.2 ms
    assert cost.matmul_token == pytest.approx(2 * layers / 312e12, rel=1e-3)  # 81 us
    assert cost.matmul_step == pytest.approx(2 * (layers + biases_and_norms) / 1555e9, rel=1e-5)
    assert cost.step == pytest.approx(2 * words / 1555e9)  # the output layer: 0.33 ms
    kv_bytes = 2 * 40 * 5120 * 2
    assert cost.decode_context == pytest.approx(kv_bytes / 1555e9)
    assert cost.prefill_pair == pytest.approx(4 * 40 * 5120 / 312e12)
    assert cost.copy_bytes_per_second == 32e9
    assert cost.prefill_token == cost.prefill_request == cost.decode_request == 0.0
    assert knee_tokens(cost) == 201  # 312e12 / 1555e9, rounded up


def test_each_efficiency_changes_what_it_is_about() -> None:
    spec = DEVICES["a100-40gb"]
    perfect = analytic_profile("opt-13b", OPT_13B, spec, "float16", PERFECT).cost
    real = analytic_profile("opt-13b", OPT_13B, spec, "float16").cost
    assumed = Efficiency()
    assert real.matmul_step == pytest.approx(perfect.matmul_step / 0.85)
    assert real.decode_context == pytest.approx(perfect.decode_context / 0.85)
    assert real.matmul_token == pytest.approx(perfect.matmul_token / 0.7)
    assert real.prefill_pair == pytest.approx(perfect.prefill_pair / 0.7)
    assert real.copy_bytes_per_second == pytest.approx(0.8 * 32e9)
    overhead = assumed.step_seconds + 40 * assumed.layer_seconds
    assert real.step == pytest.approx(perfect.step / 0.85 + overhead)


def test_the_overhead_of_a_step_can_be_set_in_milliseconds(tmp_path: Path) -> None:
    default, own = profile_of(a100()), profile_of(a100(step_overhead_ms=8.5))
    assumed = Efficiency()
    assert own.cost.step - default.cost.step == pytest.approx(
        0.0085 - assumed.step_seconds - 40 * assumed.layer_seconds
    )
    assert replace(own.cost, step=1.0) == replace(default.cost, step=1.0)
    assert default.describe() == "a100-40gb, float16, analytic"
    assert own.describe() == "a100-40gb, float16, analytic, 8.5 ms per step"
    assert own.analytic is not None
    reasons = dict(own.analytic.efficiency.reasons())
    assert reasons["step_seconds"] == "8.5 ms for each step: set by hand"
    assert "layer_seconds" not in reasons
    own.save(tmp_path / "own.json")
    assert profile_of(EngineConfig(model="opt-13b", device_spec=str(tmp_path / "own.json"))) == own


def test_the_default_overhead_is_the_one_that_the_help_states() -> None:
    (setting,) = (one for one in described(EngineConfig) if one.name == "step_overhead_ms")
    assert setting.setting.help.endswith("default: 0.3, and 0.03 for each layer.")
    assert (Efficiency().step_seconds, Efficiency().layer_seconds) == (0.3e-3, 0.03e-3)


def test_no_predicted_step_is_faster_than_the_published_peaks_allow() -> None:
    for name in ("opt-13b", "llama-3-8b", "smollm2-135m"):
        shape = shape_of(name)
        for spec in DEVICES.values():
            profile = analytic_profile(name, shape, spec, "bfloat16", PERFECT)
            for items in (
                [(511, 1)],
                [(1000, 1)] * 64,
                [(0, 512)],
                [(0, 2000)],
                [(0, 300), *[(400, 1)] * 15],
            ):
                floor = floor_of(items, shape, 2, profile.ceilings).seconds
                assert profile.cost.step_seconds(StepShape.of(items)) >= 0.97 * floor


def test_the_figure_in_the_reason_of_the_overhead_is_the_one_that_results() -> None:
    llama_2_7b = ModelShape("llama", 32_000, 4096, 11_008, 32, 32, 32, 128, 4096, tied_embeddings=False)
    cost = analytic_profile("llama-2-7b", llama_2_7b, DEVICES["a100-80gb"], "bfloat16").cost
    assert 1.0 / cost.iteration_seconds(100, 1) == pytest.approx(112, abs=0.5)
    assert "decodes 112 tokens/s" in dict(Efficiency().reasons())["layer_seconds"]


def test_float32_uses_its_own_rate_and_bytes() -> None:
    half = profile_of(a100()).cost
    single = profile_of(a100(dtype="float32")).cost
    assert single.matmul_step == pytest.approx(2 * half.matmul_step)
    assert single.matmul_token == pytest.approx(half.matmul_token * 312 / 19.5)


def test_the_table_names_what_takes_most_of_the_time() -> None:
    profile = profile_of(a100())
    rows = {row.step: row for row in table_rows(profile, OPT_13B)}
    assert list(rows) == [
        "decode 1 x 512",
        "decode 16 x 512",
        "decode 64 x 512",
        "prefill 512",
        "prefill 2048",
    ]
    assert rows["decode 16 x 512"].bound_by == "reading weights"
    assert rows["decode 64 x 512"].bound_by == "reading KV"
    assert rows["prefill 2048"].bound_by == "arithmetic"
    small = CostModel(step=0.01, matmul_step=0.001, matmul_token=1e-6)
    assert bound_by(small, StepShape.of([(0, 10)])) == "overhead and output layer"
    short = replace(OPT_13B, max_position=600)
    assert [row.step for row in table_rows(profile, short)][-1] == "prefill 512"


def test_the_file_of_an_analytic_profile_is_read_back_with_spec_efficiency_and_reasons(
    tmp_path: Path,
) -> None:
    profile = profile_of(a100())
    profile.save(tmp_path / "a100.json")
    assert Profile.load(tmp_path / "a100.json") == profile
    data = json.loads((tmp_path / "a100.json").read_text())
    assert data["analytic"]["spec"]["source"].startswith("NVIDIA A100")
    assert data["analytic"]["efficiency"]["bandwidth"] == 0.85
    assert "86 on an A100" in data["analytic"]["reasons"]["flops"]
    assert find_spec(str(tmp_path / "a100.json")) == (DEVICES["a100-40gb"], Efficiency())
    data["analytic"]["spec"]["memory_bytes"] = -1
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match=r"bad.json is not a usable profile: a100-40gb: memory_bytes must be"
    ):
        Profile.load(tmp_path / "bad.json")


def test_measured_profiles_of_older_versions_are_read_and_are_not_analytic(tmp_path: Path) -> None:
    old = Profile.load(DATA / "profile.json")
    assert old.analytic is None
    assert old.cost.is_linear
    assert "analytic" not in json.loads(old.to_json())
    with pytest.raises(ValueError, match="is a measured profile: give it with --profile"):
        find_spec(str(DATA / "profile.json"))
    data = json.loads((DATA / "profile.json").read_text()) | {"points": []}
    (tmp_path / "empty.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="it must hold 1 to"):
        Profile.load(tmp_path / "empty.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_spec": "tpu"}, "no device 'tpu' in the catalog"),
        ({"device_spec": "a100-40gb", "device": "cpu"}, "leave out --device cpu"),
        ({"step_overhead_ms": 8.5}, "--step-overhead-ms is for analytic devices: add --device-spec"),
        ({"device_spec": "a100-40gb", "profile": DATA / "profile.json"}, "leave out --profile"),
    ],
)
def test_settings_that_contradict_the_device_are_refused_before_a_start(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_names(EngineConfig(model="opt-13b", **settings))


def test_the_device_pool_is_what_weights_and_the_largest_step_leave() -> None:
    profile = profile_of(a100())
    pools = pools_of(a100(), OPT_13B, profile)
    block = 16 * OPT_13B.kv_bytes_per_token(2)
    weights = 2 * OPT_13B.num_parameters
    left = 0.9 * 40 * GIB - weights - pools.device * block
    assert 0.3e9 < left < 0.8e9  # the largest step: 2,048 tokens
    assert pools_of(
        a100(gpu_memory_utilization=1.0), OPT_13B, profile
    ).device - pools.device == pytest.approx(0.1 * 40 * GIB / block, abs=1)
    assert pools_of(a100(num_device_blocks=400), OPT_13B, profile).device == 400
    assert pools_in_words(a100(), OPT_13B, profile).startswith("weights 23.9 GiB, activations 4")


def test_a_model_that_does_not_fit_is_refused_with_both_figures() -> None:
    config = EngineConfig(model="opt-13b", device_spec="rtx4090")
    message = (
        r"opt-13b does not fit on rtx4090: weights 23.9 GiB, activations 4\d+ MiB and a KV block of 12.5 MiB "
        r"are more than its 24 GiB: choose a smaller model"
    )
    with pytest.raises(ValueError, match=message):
        make_cluster(config, OPT_13B, profile_of(config))
    with pytest.raises(ValueError, match=r"num_device_blocks 5,000 would take .* of the GPU's 40 GiB"):
        pools_of(a100(num_device_blocks=5000), OPT_13B, profile_of(a100()))


def test_a_profile_of_another_model_is_refused() -> None:
    profile = analytic_profile("opt-125m", shape_of("opt-125m"), DEVICES["l40s"], "float16")
    with pytest.raises(ValueError, match="the profile is of another model"):
        make_cluster(EngineConfig(model="opt-13b"), OPT_13B, profile)


def test_a_device_of_ones_own_is_found_by_the_file_of_its_profile(tmp_path: Path) -> None:
    spec = DeviceSpec("mine", 64 * GIB, 2e12, 400e12, None, 64e9, "measured by me")
    path = tmp_path / "mine.json"
    analytic_profile("opt-13b", OPT_13B, spec, "float16", Efficiency(flops=0.5)).save(path)
    llama = profile_of(EngineConfig(model="llama-3-8b", device_spec=str(path)))
    assert llama.analytic is not None
    assert llama.analytic.spec == spec
    assert llama.cost.matmul_token == pytest.approx(2 * 7.0e9 / (0.5 * 400e12), rel=0.01)
