"""Measures the GPU memory of a model and its steps, by running the largest possible steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from fgengine.config import EngineConfig
from fgengine.execution.prompt_passes import POSITIONS
from fgengine.kv.sizing import GpuMemory, listed
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import MAX_TOP, Request, SamplingParams
from fgengine.units import size

if TYPE_CHECKING:
    from fgengine.execution.runner import TorchRunner

DEAREST = SamplingParams(
    temperature=1.0,
    top_k=50,
    top_p=0.9,
    min_p=0.01,
    min_tokens=1,
    presence_penalty=0.1,
    repetition_penalty=1.1,
    logit_bias=((0, 1.0),),
    seed=0,
    ignore_eos=True,
    logprobs=True,
    top_logprobs=MAX_TOP,
)
"""Uses every sampling feature, so that sampling takes the maximum memory."""
SCORED = SamplingParams(ignore_eos=True, prompt_logprobs=MAX_TOP)
"""Asks for the log probabilities of the prompt, which is then computed in parts."""


class MemoryProbe(Protocol):
    """Reads the memory counters of a GPU, in bytes.

    "Reserved" is memory that torch has taken from the driver, whether or not tensors use it.
    """

    def settle(self) -> None:
        """Wait for everything that was launched, then release memory that no tensor uses."""
        ...

    def reserved(self) -> int:
        """Return the bytes that are reserved now."""
        ...

    def reset_peak(self) -> None:
        """Restart the measurement of ``peak``."""
        ...

    def peak(self) -> int:
        """Return the maximum of reserved bytes since ``reset_peak``."""
        ...

    def free_and_total(self) -> tuple[int, int]:
        """Return the device's free and total bytes. Memory used by any process is not free."""
        ...


class CudaMemory:
    """A ``MemoryProbe`` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_reserved(self._device)

    def free_and_total(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info(self._device)


def probe_of(device: torch.device) -> MemoryProbe | None:
    """Return the probe of a GPU, or None for a CPU, whose pools only use the pages that are written."""
    return CudaMemory(device) if device.type == "cuda" else None


def measure(trial: TorchRunner, config: EngineConfig, probe: MemoryProbe, *, graphs: bool) -> GpuMemory:
    """Measure the memory in use without a KV pool, and the memory that steps and CUDA graphs need.

    Args:
        trial: the loaded model over a pool of a single block. Every entry of every block table names this
            block, because the values in the KV cache do not matter here. Its bytes are not counted.
        graphs: whether decodes will be captured as CUDA graphs, up to the logits. All graphs share one
            memory pool, which remains as large as the largest graph needs.

    Raises:
        ValueError: the largest step does not fit next to the model.
    """
    trial.pool.zero_()
    with _shortage_explained(trial, config, probe):
        full, decode, scored = (kind(trial, config) for kind in (_full_step, _decode_step, _scored_step))
        single = _step(trial, [1])  # uses other kernels (split context)
        for plan in (full, decode, scored, single):
            trial.execute(plan)  # compiles kernels and fills workspaces; their memory is not part of a step
        step_peaks = [_peak_of(partial(trial.execute, plan), probe) for plan in (full, decode, scored)]
        graph_peak = _peak_of(partial(trial.logits, decode), probe)
    probe.settle()
    reserved = probe.reserved()
    free, total = probe.free_and_total()
    return GpuMemory(
        total=total,
        outside=total - free - reserved,
        weights=reserved - trial.pool.nbytes,
        activations=max(step_peaks),
        graphs=graph_peak if graphs else 0,
    )


def _full_step(trial: TorchRunner, config: EngineConfig) -> StepPlan:
    """Return a step with the maximum of tokens and requests.

    It has the longest possible prompts; the other requests are decodes. Every item ends at ``max_model_len``.
    """
    left = min(config.max_tokens_per_batch, config.max_batch_size * trial.max_model_len)
    requests = min(config.max_batch_size, left)
    lengths = []
    for others in range(requests - 1, -1, -1):
        lengths.append(min(trial.max_model_len, left - others))
        left -= lengths[-1]
    return _step(trial, lengths)


def _decode_step(trial: TorchRunner, config: EngineConfig) -> StepPlan:
    return _step(trial, [1] * min(config.max_batch_size, config.max_tokens_per_batch))


def _scored_step(trial: TorchRunner, config: EngineConfig) -> StepPlan:
    return _step(trial, [min(POSITIONS + 1, config.max_tokens_per_batch, trial.max_model_len)], SCORED)


def _step(trial: TorchRunner, lengths: list[int], params: SamplingParams = DEAREST) -> StepPlan:
    end = trial.max_model_len
    tokens = [0] * end
    blocks = [0] * -(-end // trial.block_size)
    requests = [Request(f"trial-{n}", end, params, 0.0, tokens) for n in range(len(lengths))]
    items = [PlanItem(r, end - n, n, blocks, True) for r, n in zip(requests, lengths, strict=True)]
    return StepPlan(0, items)


def _peak_of(compute: Callable[[], object], probe: MemoryProbe) -> int:
    probe.settle()
    before = probe.reserved()
    probe.reset_peak()
    compute()
    return probe.peak() - before


@contextmanager
def _shortage_explained(trial: TorchRunner, config: EngineConfig, probe: MemoryProbe) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = probe.free_and_total()
        # Compute the size: the reserved memory still includes a part of the failed step.
        weights = trial.shape.num_parameters * trial.dtype.itemsize
        gpu = GpuMemory(total, outside=total - free - probe.reserved(), weights=weights)
        raise ValueError(
            f"there is no memory for a step of {config.max_tokens_per_batch} tokens or "
            f"{config.max_batch_size} requests: of the GPU's {size(total)}, {listed(gpu.parts)} are taken; "
            f"lower max_tokens_per_batch or max_batch_size, or {gpu.advice}"
        ) from error
