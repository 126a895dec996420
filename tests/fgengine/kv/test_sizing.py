"""How many blocks fit, and what is said when too few do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fgengine.config import EngineConfig
from fgengine.kv import sizing
from fgengine.kv.sizing import GpuMemory

GIB, MIB = 1024**3, 1024**2
CONFIG = EngineConfig(device_memory_utilization=0.5, swap_space_bytes=1000)
GPU = GpuMemory(total=80 * GIB, outside=GIB, weights=24 * GIB, activations=2 * GIB, graphs=GIB)


def test_on_a_cpu() -> None:
    assert sizing.device_blocks_on_cpu(CONFIG, 100, 10_000) == 50
    assert sizing.device_blocks_on_cpu(CONFIG, 2**20, 2**50) == sizing.CPU_POOL_LIMIT_BYTES // 2**20
    assert sizing.device_blocks_on_cpu(replace(CONFIG, num_device_blocks=7), 100, 10_000) == 7
    assert sizing.host_blocks(CONFIG, 300) == 3
    with pytest.raises(ValueError, match="no memory is left for the KV pool: a block takes 100 bytes of 95"):
        sizing.device_blocks_on_cpu(CONFIG, 100, 190)


def test_on_a_gpu_it_is_the_share_less_all_that_is_taken_and_a_dummy() -> None:
    assert sizing.device_blocks_on_gpu(CONFIG, 12 * MIB, GPU) == 12 * 1024 // 12 - 1
    nine_tenths = replace(CONFIG, device_memory_utilization=0.9)
    assert sizing.device_blocks_on_gpu(nine_tenths, 16 * MIB, GPU) == (72 - 28) * 1024 // 16 - 1
    for part in ("outside", "weights", "activations", "graphs"):
        more = replace(GPU, **{part: getattr(GPU, part) + GIB})
        assert sizing.device_blocks_on_gpu(nine_tenths, 16 * MIB, more) == (72 - 29) * 1024 // 16 - 1


@pytest.mark.parametrize(
    ("gpu", "share", "advice"),
    [
        (replace(GPU, outside=40 * GIB), 0.7, "raise device_memory_utilization, or end the other processes"),
        (replace(GPU, outside=60 * GIB), 0.7, "MiB; end the other processes on this GPU"),
        (GPU, 0.3, "raise device_memory_utilization, or choose a smaller model"),
        (replace(GPU, weights=77 * GIB), 1.0, "MiB; choose a smaller model"),
        (replace(GPU, activations=90 * GIB), 1.0, "MiB; lower max_tokens_per_batch or max_batch_size"),
    ],
)
def test_where_nothing_is_left_it_says_what_took_it(gpu: GpuMemory, share: float, advice: str) -> None:
    with pytest.raises(
        ValueError, match=r"no memory is left for the KV pool: of \d+% of the GPU's 80\.0 GiB"
    ) as e:
        sizing.device_blocks_on_gpu(replace(CONFIG, device_memory_utilization=share), 12 * MIB, gpu)
    assert advice in str(e.value)
    assert f", {sizing.listed(gpu.parts)} are taken, and a block takes 12.0 MiB; " in str(e.value)


def test_blocks_asked_for_may_take_all_that_is_free_and_no_more() -> None:
    most = 52 * 1024 // 16 - 1
    assert sizing.device_blocks_on_gpu(replace(CONFIG, num_device_blocks=most), 16 * MIB, GPU) == most
    assert sizing.device_blocks_on_gpu(replace(CONFIG, num_device_blocks=5), 16 * MIB, GPU) == 5
    with pytest.raises(
        ValueError, match=r"num_device_blocks 3,328 would take 52\.0 GiB.*lower it to 3,327 or"
    ):
        sizing.device_blocks_on_gpu(replace(CONFIG, num_device_blocks=most + 1), 16 * MIB, GPU)
    with pytest.raises(ValueError, match=r"of the GPU's 80\.0 GiB, .* taken, .*; choose a smaller model"):
        sizing.device_blocks_on_gpu(
            replace(CONFIG, num_device_blocks=5), 16 * MIB, replace(GPU, weights=79 * GIB)
        )


def test_the_division_in_a_line() -> None:
    line = sizing.division(GPU.parts, 3120, 163, 16, 12 * MIB)
    assert line == (
        "weights 24.0 GiB, activations 2.0 GiB, CUDA graphs 1.0 GiB, other processes and CUDA itself 1.0 GiB"
        ", KV pool 36.6 GiB = 3,120 blocks (49,920 tokens), host pool 1.9 GiB = 163 blocks (2,608 tokens)"
    )
    assert replace(GPU, graphs=0).parts.keys() == {
        "weights",
        "activations",
        "other processes and CUDA itself",
    }
    assert sizing.division({"weights": MIB}, 2, 0, 16, MIB).endswith("KV pool 2.0 MiB = 2 blocks (32 tokens)")
    assert sizing.size(5 * MIB + MIB // 2) == "5.5 MiB"
