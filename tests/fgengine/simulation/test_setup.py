"""The KV pools of a simulation equal those of an engine with enough memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fgengine.config import EngineConfig
from fgengine.kv.sizing import GIB, Pools, block_bytes, pools_on_cpu
from fgengine.model.catalog import shape_of
from fgengine.profile import Profile
from fgengine.simulation.setup import make_cluster, pools_in_words, pools_of

CPU = Profile.load(Path(__file__).parents[2] / "data" / "profile.json")
GPU = replace(CPU, device="NVIDIA H100")
SHAPE = shape_of("smollm2-135m")
PER_BLOCK = block_bytes(SHAPE, 16, 2)
CONFIG = EngineConfig()


def test_the_pools_of_a_cpu_equal_those_of_an_engine_with_enough_memory() -> None:
    for config in (CONFIG, replace(CONFIG, num_device_blocks=400), replace(CONFIG, swap_space=1)):
        assert pools_of(config, SHAPE, CPU) == pools_on_cpu(config, PER_BLOCK, 64 * GIB)
    replica = make_cluster(CONFIG, SHAPE, CPU).replicas[0]
    kv = replica.scheduler.kv
    assert (kv.device.num_blocks, kv.host.num_blocks) == (2 * GIB // PER_BLOCK, 4 * (2 * GIB // PER_BLOCK))


def test_with_a_gpu_the_host_pool_is_limited() -> None:
    with pytest.raises(ValueError, match="give --num-device-blocks"):
        pools_of(CONFIG, SHAPE, GPU)
    config = replace(CONFIG, num_device_blocks=200_000)
    assert pools_of(config, SHAPE, GPU) == Pools(200_000, 32 * GIB // PER_BLOCK)


def test_the_description_states_the_assumption() -> None:
    line = pools_in_words(CONFIG, SHAPE, CPU)
    assert line.startswith("KV pool 2 GiB = 5,825 blocks (93,200 tokens, about 182 requests of 512 tokens)")
    assert "host pool 8 GiB = 23,300 blocks" in line
    assert line.endswith("; assumed: memory enough for the default pools")
    by_hand = replace(CONFIG, num_device_blocks=400, swap_space=0)
    for config in (by_hand, replace(by_hand, swap_space=None, offloading="recompute")):
        assert pools_in_words(config, SHAPE, CPU) == (
            "KV pool 141 MiB = 400 blocks (6,400 tokens, about 12 requests of 512 tokens)"
        )
