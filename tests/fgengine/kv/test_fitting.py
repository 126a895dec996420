"""The memory that a model needs, and the message if it does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgengine.config import EngineConfig
from fgengine.kv.fitting import Candidate, Machine, Memory, need_of, shortage
from fgengine.model.catalog import CATALOG

GIB, MIB = 1024**3, 1024**2
CONFIG = EngineConfig()
OTHERS = [Candidate(entry.name, entry.shape, 2) for entry in CATALOG.values()]
NAMED = {other.name: other for other in OTHERS}


def cpu(free: float, total: float = 24) -> Machine:
    return Machine(Memory(int(free * GIB), int(total * GIB)))


def gpu(free: float, total: float = 80, host: float = 64) -> Machine:
    return Machine(Memory(int(host * GIB), 128 * GIB), Memory(int(free * GIB), int(total * GIB)))


def refusal(model: str, machine: Machine, config: EngineConfig = CONFIG) -> str | None:
    return shortage(NAMED[model], config, machine, OTHERS)


def test_opt_13b_on_a_machine_of_24_gib_is_refused_and_opt_6_7b_is_not() -> None:
    """This matches reality: on such a machine opt-13b is killed for memory, and opt-6.7b runs."""
    reason = refusal("opt-13b", cpu(22.9))
    assert reason is not None
    assert reason.startswith("opt-13b does not fit into memory: it needs 25.")
    assert "(weights 24.4 GiB, a step " in reason
    assert "and 22.9 GiB of the machine's 24 GiB are free" in reason
    assert "end other programs" not in reason, "this remedy would not help"
    assert reason.endswith("the largest of the catalog that fits is llama-3-8b (16.1 GiB)")
    assert refusal("opt-6.7b", cpu(22.9)) is None
    assert 13.5 * GIB < need_of(NAMED["opt-6.7b"], CONFIG, cpu(22.9)).total < 14.5 * GIB


def test_memory_used_by_other_programs_is_named_in_the_refusal() -> None:
    reason = refusal("opt-6.7b", cpu(8))
    assert reason is not None
    assert "end other programs that use this memory, or choose a smaller model" in reason
    assert "the largest of the catalog that fits is opt-1.3b" in reason
    nothing = refusal("opt-125m", cpu(0.1))
    assert nothing is not None
    assert nothing.endswith("no model of the catalog fits now")


def test_a_refusal_on_a_gpu_states_the_gpus_memory() -> None:
    reason = refusal("opt-66b", gpu(79))
    assert reason is not None
    assert reason.startswith("opt-66b does not fit on the GPU: it needs 124")
    assert "79 GiB of the GPU's 80 GiB are free" in reason
    assert "opt-30b" in reason
    assert refusal("opt-13b", gpu(30)) is None
    taken = refusal("opt-13b", gpu(10))
    assert taken is not None
    assert "end other programs that use this memory" in taken


def test_the_total_is_the_sum_of_the_parts_even_if_loading_needs_more_than_serving() -> None:
    need = need_of(NAMED["llama-3-8b"], replace(CONFIG, max_tokens_per_batch=64), cpu(22))
    assert list(need.peak) == ["weights", "rotary embedding", "reordering the largest of them"]
    assert need.total == sum(need.peak.values()) > sum(need.parts.values())


def test_a_step_that_is_too_large_is_refused_with_a_remedy() -> None:
    config = replace(CONFIG, max_tokens_per_batch=2**20, max_batch_size=2**10)
    reason = refusal("smollm2-135m", cpu(8), config)
    assert reason is not None
    assert "lower max_tokens_per_batch or max_batch_size" in reason


@pytest.mark.parametrize(
    ("machine", "settings", "message"),
    [
        (
            cpu(6),
            {"num_device_blocks": 100_000},
            "num_device_blocks 100,000 takes 54.9 GiB, but of the machine's memory 6 GiB are free and "
            "weights",
        ),
        (
            cpu(6),
            {"swap_space": 40},
            "swap_space takes 40 GiB, but of the machine's memory 6 GiB",
        ),
        (
            cpu(6),
            {"num_device_blocks": 9000, "swap_space": 4},
            "num_device_blocks 9,000 takes 4.94 GiB and swap_space takes 4 GiB, but",
        ),
        (gpu(6), {"num_device_blocks": 100_000}, "but of the GPU's memory 6 GiB are free and weights"),
        (
            gpu(6, host=3),
            {"swap_space": 4},
            "swap_space 4 GiB is more than the 3 GiB of",
        ),
    ],
)
def test_pool_sizes_that_do_not_fit_are_refused(
    machine: Machine, settings: dict[str, int], message: str
) -> None:
    reason = refusal("opt-125m", machine, replace(CONFIG, **settings))
    assert reason is not None
    assert message in reason
    assert "lower" in reason


def test_the_suggested_number_of_device_blocks_is_the_largest_that_fits() -> None:
    reason = refusal("opt-125m", cpu(6), replace(CONFIG, num_device_blocks=100_000))
    assert reason is not None
    limit = int(reason.partition("lower num_device_blocks to ")[2].partition(" ")[0].replace(",", ""))
    assert refusal("opt-125m", cpu(6), replace(CONFIG, num_device_blocks=limit)) is None
    assert refusal("opt-125m", cpu(6), replace(CONFIG, num_device_blocks=limit + 1)) is not None


@pytest.mark.parametrize(
    ("blocks", "swap", "remedy"),
    [
        (9000, GIB, "lower num_device_blocks to 8,"),
        (1000, 30 * GIB, "lower swap_space to 4."),
        (20_000, 30 * GIB, "lower both"),
    ],
)
def test_the_remedy_is_to_lower_the_larger_pool(blocks: int, swap: int, remedy: str) -> None:
    reason = refusal("opt-125m", cpu(6), replace(CONFIG, num_device_blocks=blocks, swap_space=swap / 2**30))
    assert reason is not None
    assert remedy in reason


def test_the_suggested_swap_space_fits_and_slightly_more_does_not() -> None:
    reason = refusal("opt-125m", cpu(6), replace(CONFIG, swap_space=40))
    assert reason is not None
    limit = float(reason.partition("lower swap_space to ")[2].partition(" ")[0])
    assert refusal("opt-125m", cpu(6), replace(CONFIG, swap_space=limit)) is None
    assert refusal("opt-125m", cpu(6), replace(CONFIG, swap_space=limit + 0.2)) is not None


@given(st.sampled_from(OTHERS), st.floats(0.0, 200.0), st.floats(0.0, 100.0), st.booleans())
def test_a_model_is_refused_exactly_if_its_need_exceeds_the_free_memory(
    model: Candidate, free: float, more: float, on_gpu: bool
) -> None:
    machine, larger = (gpu(n, 400) if on_gpu else cpu(n, 400) for n in (free, free + more))
    need = need_of(model, CONFIG, machine)
    refused = shortage(model, CONFIG, machine, OTHERS)
    assert (refused is None) == (need.total <= machine.memory.free)
    assert need.total >= model.shape.num_parameters * model.element_bytes
    if refused is None:
        assert shortage(model, CONFIG, larger, OTHERS) is None
    elif "that fits is " in refused:
        name = refused.partition("that fits is ")[2].partition(" ")[0]
        assert shortage(NAMED[name], CONFIG, machine, OTHERS) is None
