"""The number of KV blocks that fit, and the messages if too few fit."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgengine.config import EngineConfig, Offloading
from fgengine.kv import sizing
from fgengine.kv.sizing import GpuMemory, Pools
from fgengine.model.catalog import shape_of

GIB, MIB = 1024**3, 1024**2
CONFIG = EngineConfig(gpu_memory_utilization=0.5, swap_space=1000 / 2**30)
DEFAULTS = EngineConfig()
GPU = GpuMemory(total=80 * GIB, outside=GIB, weights=24 * GIB, activations=2 * GIB, graphs=GIB)


def test_pools_on_a_cpu() -> None:
    assert sizing.pools_on_cpu(CONFIG, 100, 10_000) == Pools((5000 - 100 - 1000) // 100, 10)
    ample = sizing.pools_on_cpu(DEFAULTS, MIB, 64 * GIB)
    assert ample == Pools(sizing.CPU_POOL_LIMIT_BYTES // MIB, 4 * sizing.CPU_POOL_LIMIT_BYTES // MIB)
    # Of 90% of 4 GiB, the device pool takes 2 GiB and a dummy block; the host pool gets the rest.
    assert sizing.pools_on_cpu(DEFAULTS, MIB, 4 * GIB) == Pools(2048, int(4096 * 0.9) - 1 - 2048)
    assert sizing.pools_on_cpu(DEFAULTS, MIB, 2 * GIB) == Pools(int(2048 * 0.9) - 1, 0)
    by_hand = replace(DEFAULTS, num_device_blocks=7)
    assert sizing.pools_on_cpu(by_hand, MIB, 64 * GIB) == Pools(7, sizing.MIN_HOST_POOL_BYTES // MIB)
    assert sizing.pools_on_cpu(replace(by_hand, swap_space=0), MIB, 64 * GIB) == Pools(7, 0)


@pytest.mark.parametrize("offloading", ["none", "recompute"])
def test_a_mode_without_copies_gets_a_host_pool_only_if_its_size_is_set(offloading: Offloading) -> None:
    config = replace(DEFAULTS, offloading=offloading)
    assert sizing.pools_on_cpu(config, MIB, 64 * GIB).host == 0
    assert sizing.gpu_host_blocks(config, 1000, MIB, 64 * GIB) == 0
    assert sizing.pools_on_cpu(replace(config, swap_space=1), MIB, 64 * GIB).host == 1024


def test_pools_that_do_not_fit_on_a_cpu_raise_an_error_with_sizes() -> None:
    with pytest.raises(ValueError, match=r"left for the KV pool: a block takes 64 MiB of the 96"):
        sizing.pools_on_cpu(DEFAULTS, 64 * MIB, 96 * MIB)
    with pytest.raises(ValueError, match=r"with a host pool of 3 GiB: .* lower swap_space"):
        sizing.pools_on_cpu(replace(DEFAULTS, swap_space=3), MIB, 3 * GIB)
    too_many = replace(DEFAULTS, num_device_blocks=5000, swap_space=1)
    with pytest.raises(
        ValueError,
        match=r"5,000 device blocks of 4\.88 GiB and 1 GiB of swap .* the 5 GiB .* lower num_device",
    ):
        sizing.pools_on_cpu(too_many, MIB, 5 * GIB)
    with pytest.raises(ValueError, match="lower swap_space"):
        sizing.pools_on_cpu(replace(too_many, num_device_blocks=9, swap_space=7), MIB, 5 * GIB)


SETTINGS = st.builds(
    EngineConfig,
    num_device_blocks=st.none() | st.integers(1, 10**6),
    swap_space=st.none() | st.integers(0, 64 * GIB).map(lambda size: size / GIB),
    gpu_memory_utilization=st.floats(0.01, 1.0),
    offloading=st.sampled_from(get_args(Offloading)),
)
BLOCK = st.integers(1, 64 * MIB)
FREE = st.integers(0, 2**45)


@given(SETTINGS, BLOCK, FREE)
def test_the_pools_of_a_cpu_never_exceed_the_free_memory(config: EngineConfig, block: int, free: int) -> None:
    try:
        pools = sizing.pools_on_cpu(config, block, free)
    except ValueError:
        return
    assert (pools.device + sizing.DUMMY_BLOCKS + pools.host) * block <= free
    assert pools.device >= 1
    assert pools.host >= 0
    if config.num_device_blocks is not None:
        assert pools.device == config.num_device_blocks
    else:
        assert pools.device * block <= sizing.CPU_POOL_LIMIT_BYTES
    if config.swap_space_bytes is not None:
        assert pools.host == config.swap_space_bytes // block


@given(SETTINGS, BLOCK, FREE, st.integers(0, 2**40))
def test_more_free_memory_never_makes_a_pool_smaller(
    config: EngineConfig, block: int, free: int, more: int
) -> None:
    try:
        less = sizing.pools_on_cpu(config, block, free)
    except ValueError:
        return
    greater = sizing.pools_on_cpu(config, block, free + more)
    assert greater.device >= less.device
    assert greater.host >= less.host


@given(st.integers(1, 10**6), BLOCK, FREE, st.integers(0, 2**40))
def test_a_gpus_host_pool_is_bounded_by_free_memory_and_the_pinned_limit(
    device: int, block: int, free: int, more: int
) -> None:
    blocks = sizing.gpu_host_blocks(DEFAULTS, device, block, free)
    assert 0 <= blocks * block <= min(free * sizing.PINNED_SHARE, sizing.PINNED_LIMIT_BYTES)
    assert blocks * block <= max(4 * device * block, sizing.MIN_HOST_POOL_BYTES)
    assert sizing.gpu_host_blocks(DEFAULTS, device, block, free + more) >= blocks
    assert sizing.gpu_host_blocks(DEFAULTS, device + 1, block, free) >= blocks


def test_opt_13b_on_a_large_gpu_gets_the_host_pool_of_the_paper() -> None:
    per_block = sizing.block_bytes(shape_of("opt-13b"), 16, 2)
    device = sizing.device_blocks_on_gpu(EngineConfig(), per_block, GPU)
    host = sizing.gpu_host_blocks(EngineConfig(), device, per_block, 200 * GIB)
    assert host == 32 * GIB // per_block
    assert sizing.gpu_host_blocks(EngineConfig(), device, per_block, 60 * GIB) == 15 * GIB // per_block


def test_a_gpus_device_pool_is_its_share_minus_all_uses_and_a_dummy_block() -> None:
    assert sizing.device_blocks_on_gpu(CONFIG, 12 * MIB, GPU) == 12 * 1024 // 12 - 1
    nine_tenths = replace(CONFIG, gpu_memory_utilization=0.9)
    assert sizing.device_blocks_on_gpu(nine_tenths, 16 * MIB, GPU) == (72 - 28) * 1024 // 16 - 1
    for part in ("outside", "weights", "activations", "graphs"):
        more = replace(GPU, **{part: getattr(GPU, part) + GIB})
        assert sizing.device_blocks_on_gpu(nine_tenths, 16 * MIB, more) == (72 - 29) * 1024 // 16 - 1


@pytest.mark.parametrize(
    ("gpu", "share", "advice"),
    [
        (replace(GPU, outside=40 * GIB), 0.7, "raise gpu_memory_utilization, or end the other processes"),
        (replace(GPU, outside=60 * GIB), 0.7, "MiB; end the other processes on this GPU"),
        (GPU, 0.3, "raise gpu_memory_utilization, or choose a smaller model"),
        (replace(GPU, weights=77 * GIB), 1.0, "MiB; choose a smaller model"),
        (replace(GPU, activations=90 * GIB), 1.0, "MiB; lower max_tokens_per_batch or max_batch_size"),
    ],
)
def test_the_error_for_a_full_gpu_lists_all_uses(gpu: GpuMemory, share: float, advice: str) -> None:
    with pytest.raises(
        ValueError, match=r"no memory is left for the KV pool: of \d+% of the GPU's 80 GiB"
    ) as e:
        sizing.device_blocks_on_gpu(replace(CONFIG, gpu_memory_utilization=share), 12 * MIB, gpu)
    assert advice in str(e.value)
    assert f", {sizing.listed(gpu.parts)} are taken, and a block takes 12 MiB; " in str(e.value)


def test_num_device_blocks_may_use_all_free_memory_but_not_more() -> None:
    limit = 52 * 1024 // 16 - 1
    assert sizing.device_blocks_on_gpu(replace(CONFIG, num_device_blocks=limit), 16 * MIB, GPU) == limit
    assert sizing.device_blocks_on_gpu(replace(CONFIG, num_device_blocks=5), 16 * MIB, GPU) == 5
    with pytest.raises(ValueError, match=r"num_device_blocks 3,328 would take 52 GiB.*lower it to 3,327 or"):
        sizing.device_blocks_on_gpu(replace(CONFIG, num_device_blocks=limit + 1), 16 * MIB, GPU)
    with pytest.raises(ValueError, match=r"of the GPU's 80 GiB, .* taken, .*; choose a smaller model"):
        sizing.device_blocks_on_gpu(
            replace(CONFIG, num_device_blocks=5), 16 * MIB, replace(GPU, weights=79 * GIB)
        )


def test_the_division_is_described_in_one_line() -> None:
    line = sizing.division(GPU.parts, Pools(3120, 163), 16, 12 * MIB)
    assert line == (
        "weights 24 GiB, activations 2 GiB, CUDA graphs 1 GiB, other processes and CUDA itself 1 GiB"
        ", KV pool 36.6 GiB = 3,120 blocks (49,920 tokens, about 97 requests of 512 tokens), "
        "host pool 1.91 GiB = 163 blocks (2,608 tokens, about 5 requests of 512 tokens)"
    )
    assert replace(GPU, graphs=0).parts.keys() == {
        "weights",
        "activations",
        "other processes and CUDA itself",
    }
    small = sizing.division({"weights": MIB}, Pools(2, 0), 16, MIB)
    assert small.endswith("KV pool 2 MiB = 2 blocks (32 tokens, less than a request of 512 tokens)")
    of_twenty = sizing.division({}, Pools(2, 0), 16, MIB, 20)
    assert of_twenty == "KV pool 2 MiB = 2 blocks (32 tokens, about 1 request of 20 tokens)"
