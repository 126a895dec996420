"""The runner: dtype, pool sizes, memory limits, weights and log probabilities."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgengine.config import EngineConfig
from fgengine.engine import Engine
from fgengine.execution import create, machine, memory
from fgengine.execution import runner as runner_module
from fgengine.execution.create import create_runner
from fgengine.execution.host_memory import HostMemory
from fgengine.kv.transfer import Transfer
from fgengine.model.catalog import shape_of
from fgengine.model.loader import Model, load
from fgengine.model.shape import ModelShape
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams

CPU = torch.device("cpu")
SHAPE = ModelShape("llama", 96, 64, 96, 2, 4, 2, 16, 128, tied_embeddings=True)
CONFIG = EngineConfig(device="cpu", dtype="float32", num_device_blocks=10, swap_space=100_000 / 2**30)


def test_sizes_and_names() -> None:
    runner = create_runner(CONFIG, SHAPE, None)
    assert runner.block_bytes == 16 * 2 * 2 * 2 * 16 * 4
    assert (runner.num_device_blocks, runner.num_host_blocks) == (10, 100_000 // runner.block_bytes)
    assert runner.pool.shape == (11, 2, 2, 2, 16, 16)
    assert (runner.dtype_name, runner.max_model_len) == ("float32", 128)
    assert runner.device_name
    runner.close()


def test_only_requests_that_ask_get_logprobs() -> None:
    runner = create_runner(CONFIG, SHAPE, None)
    params = SamplingParams(temperature=0.0)
    asking = SamplingParams(temperature=0.0, logprobs=True)
    requests = [Request.new("a", [1, 2, 3], params, 0.0), Request.new("b", [1, 2, 3], asking, 0.0)]
    plan = StepPlan(4, [PlanItem(r, 0, 3, [n], True) for n, r in enumerate(requests)])
    result = runner.execute(plan)
    want = runner.logits(plan)[1].log_softmax(-1).max()
    assert result.tokens["a"] == result.tokens["b"]
    assert set(result.logprobs) == {"b"}
    assert result.logprobs["b"] == pytest.approx(float(want), abs=1e-5)
    runner.close()


def test_a_longer_context_than_the_model_has_is_refused() -> None:
    with pytest.raises(ValueError, match="129 is more than the 128"):
        create_runner(EngineConfig(device="cpu", max_model_len=129), SHAPE, None)


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("loaded although it does not fit")

    monkeypatch.setattr(create, "load", load)


def free_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Fake ``free`` bytes of free and total memory."""
    found = HostMemory(free, free)
    for module in (create, runner_module, machine):
        monkeypatch.setattr(module, "host_memory", lambda: found)


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize("setting", ["num_device_blocks", "swap_space"])
def test_a_pool_beyond_all_memory_is_refused_before_anything_is_loaded(setting: str) -> None:
    beyond = {"num_device_blocks": 2**31, "swap_space": 2**25}
    message = f"{setting} .*takes .* GiB.* are free and weights .*: lower {setting} to"
    with pytest.raises(ValueError, match=message):
        create_runner(replace(CONFIG, **{setting: beyond[setting]}), SHAPE, None)


@pytest.mark.usefixtures("unloadable")
def test_a_model_beyond_free_memory_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 2 * 2**30)
    config = EngineConfig(model="opt-13b", device="cpu", dtype="bfloat16", use_dummy_weights=True)
    with pytest.raises(ValueError, match=r"opt-13b does not fit .* needs 25\..* 2 GiB of .* qwen2"):
        create_runner(config, shape_of("opt-13b"), None)
    with pytest.raises(ValueError, match="opt-13b does not fit"):
        Engine.from_config(replace(config, use_dummy_weights=False))


def test_the_default_pools_fill_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(device="cpu", dtype="float32")
    free_memory(monkeypatch, 2**30)
    runner = create_runner(config, SHAPE, None)
    runner.close()
    per_block = runner.block_bytes
    assert 0.8 * 2**30 < (runner.num_device_blocks + runner.num_host_blocks) * per_block < 2**30
    assert runner.num_host_blocks == 0, "device blocks come first"
    free_memory(monkeypatch, 3 * 2**30)
    runner = create_runner(config, SHAPE, None)
    runner.close()
    assert runner.num_device_blocks == 2 * 2**30 // per_block
    assert 0.5 * 2**30 < runner.num_host_blocks * per_block < 2**30


def test_a_profile_takes_no_more_memory_than_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = create_runner(CONFIG, SHAPE, None)
    free_memory(monkeypatch, 2**20)
    assert 10 < runner.max_blocks < 2**20 // runner.block_bytes
    free_memory(monkeypatch, 0)
    assert runner.max_blocks == runner.num_device_blocks == 10
    runner.close()


def test_the_dummy_block_follows_the_blocks_for_requests() -> None:
    runner = create_runner(CONFIG, SHAPE, None)
    assert (runner.dummy_block, len(runner.pool)) == (10, 11)
    with runner.larger_pool(10):
        assert (runner.dummy_block, len(runner.pool)) == (10, 11)
    own = runner.pool
    with runner.larger_pool(20):
        assert (runner.dummy_block, runner.num_device_blocks, len(runner.pool)) == (20, 20, 21)
    assert (runner.dummy_block, runner.num_device_blocks) == (10, 10)
    assert runner.pool is own
    with pytest.raises(ValueError, match=r"no memory for a KV pool of .*; as a profile needs it"):
        runner.larger_pool(2**31).__enter__()
    assert runner.pool is own
    runner.copies.submit(Transfer(1, "a", "offload", [9], [0]))
    assert len(runner.copies.wait()) == 1
    runner.copies.submit(Transfer(2, "a", "offload", [runner.dummy_block], [0]))
    with pytest.raises(RuntimeError, match="outside the pool of 10"):
        runner.copies.wait()
    runner.close()


def test_how_the_memory_was_divided_is_reported() -> None:
    lines: list[str] = []
    runner = create_runner(CONFIG, SHAPE, None, lines.append)
    runner.close()
    assert len(lines) == 1
    assert lines[0] == (
        f"weights {SHAPE.num_parameters * 4 / 2**10:.0f} KiB, "
        "KV pool 80 KiB = 10 blocks (160 tokens, about 1 request of 128 tokens), "
        "host pool 96 KiB = 12 blocks (192 tokens, about 1 request of 128 tokens)"
    )


class Gpu:
    """A GPU of 64 MiB: other processes use 4, the loaded model uses 20, and steps use up to 10 more."""

    def settle(self) -> None: ...

    def reset_peak(self) -> None: ...

    def reserved(self) -> int:
        return 20 * 2**20

    def peak(self) -> int:
        return 30 * 2**20

    def free_and_total(self) -> tuple[int, int]:
        return 40 * 2**20, 64 * 2**20


@pytest.mark.parametrize(("asked", "blocks"), [(None, 109), (30, 30)])
@pytest.mark.slow
def test_a_gpus_pool_is_what_the_measured_steps_leave(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, blocks: int
) -> None:
    monkeypatch.setattr(memory, "probe_of", lambda device: Gpu())
    shape = replace(SHAPE, num_layers=4, max_position=1024)
    lines: list[str] = []
    config = replace(CONFIG, num_device_blocks=asked, block_size=128, gpu_memory_utilization=0.9)
    runner = create_runner(config, shape, None, lines.append)
    per_block, trial_pool = runner.block_bytes, 2 * runner.block_bytes
    left = int(64 * 2**20 * 0.9) - (4 + 20 + 10 + 10) * 2**20 + trial_pool
    assert runner.num_device_blocks == blocks == (asked or left // per_block - 1)
    assert len(runner.pool) == blocks + 1
    assert lines[0].startswith("running the largest steps once")
    assert lines[1].startswith("weights 19.8 MiB, activations 10 MiB, CUDA graphs 10 MiB, other processes")
    runner.close()
    with pytest.raises(ValueError, match=r"num_device_blocks 300 would take .* lower it to 161 or"):
        create_runner(replace(config, num_device_blocks=300), shape, None)
    with pytest.raises(ValueError, match=r"num_device_blocks 900 takes .* GPU's memory .* less than 314"):
        create_runner(replace(config, num_device_blocks=900), shape, None)


def same(a: Model, b: Model) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_dummy_weights_are_seeded() -> None:
    first, again, other = (load(SHAPE, None, CPU, torch.bfloat16, seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)
    assert first.embedding.float().std() == pytest.approx(0.02, rel=0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = load(SHAPE, None, CPU, torch.float32, 0)
    tensors = {name: place.clone() for name, place in model.places().items()}
    names = sorted(tensors)
    for shard in (0, 1):
        save_file({name: tensors[name] for name in names[shard::2]}, tmp_path / f"part{shard}.safetensors")
    return tmp_path


def test_sharded_files_fill_every_place(folder: Path) -> None:
    assert same(load(SHAPE, folder, CPU, torch.float32, 0), load(SHAPE, None, CPU, torch.float32, 0))


def test_missing_unexpected_and_misshapen_tensors(folder: Path) -> None:
    part = folder / "part0.safetensors"
    tensors = load_file(part)
    save_file(tensors | {"model.extra.weight": torch.zeros(1)}, part)
    with pytest.raises(ValueError, match=r"1 tensors are not this model's: model\.extra\.weight"):
        load(SHAPE, folder, CPU, torch.float32, 0)
    name = sorted(tensors)[0]
    save_file(tensors | {name: torch.zeros(3, 3)}, part)
    with pytest.raises(ValueError, match=r"is \[3, 3\], but the sizes in config\.json need"):
        load(SHAPE, folder, CPU, torch.float32, 0)
    part.unlink()
    with pytest.raises(ValueError, match="tensors are missing"):
        load(SHAPE, folder, CPU, torch.float32, 0)
    (folder / "part1.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        load(SHAPE, folder, CPU, torch.float32, 0)
    (folder / "part1.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no safetensors"):
        load(SHAPE, folder, CPU, torch.float32, 0)
