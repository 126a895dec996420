"""What of a GPU's memory a model and its steps take, found out by running the largest steps there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from fgengine.config import EngineConfig
from fgengine.kv.sizing import GpuMemory, listed
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams
from fgengine.units import size

if TYPE_CHECKING:
    from fgengine.execution.runner import TorchRunner

DEAREST = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, seed=0, ignore_eos=True, logprobs=True)
"""Whatever a request can ask of sampling."""


class MemoryProbe(Protocol):
    """Bytes of a GPU. Reserved is what torch has taken from the driver, whether tensors fill it or not."""

    def settle(self) -> None:
        """Lets everything launched end and gives back what no tensor fills."""
        ...

    def reserved(self) -> int: ...

    def reset_peak(self) -> None: ...

    def peak(self) -> int:
        """The most that was reserved since ``reset_peak``."""
        ...

    def free_and_total(self) -> tuple[int, int]:
        """Of the device: what anybody has taken is not free."""
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
    """None where memory is the system's: a CPU's pool takes what is written, and no more."""
    return CudaMemory(device) if device.type == "cuda" else None


def measure(trial: TorchRunner, config: EngineConfig, probe: MemoryProbe, *, graphs: bool) -> GpuMemory:
    """What is taken before there is a KV pool, and what steps and ``graphs`` will take.

    Args:
        trial: the loaded model over a pool of a block, which every entry of every block table names: what
            lies in the cache decides nothing here. Its bytes are not counted.
        graphs: whether decodes will be captured as CUDA graphs, up to their logits; all share one pool of
            their own, where what the largest takes stays taken.

    Raises:
        ValueError: the largest step does not fit beside the model.
    """
    trial.pool.zero_()
    with _shortage_explained(trial, config, probe):
        full, decode = _full_step(trial, config), _decode_step(trial, config)
        for plan in (full, decode, _step(trial, [1])):  # one alone has its context split, by other kernels
            trial.execute(plan)  # compiles kernels and fills workspaces: what stays is no step's
        of_steps = [_peak_of(partial(trial.execute, plan), probe) for plan in (full, decode)]
        of_graphs = _peak_of(partial(trial.logits, decode), probe)
    probe.settle()
    reserved = probe.reserved()
    free, total = probe.free_and_total()
    return GpuMemory(
        total=total,
        outside=total - free - reserved,
        weights=reserved - trial.pool.nbytes,
        activations=max(of_steps),
        graphs=of_graphs if graphs else 0,
    )


def _full_step(trial: TorchRunner, config: EngineConfig) -> StepPlan:
    """As many tokens as a step can have, in as many requests: prompts as long as can be, all else decodes,
    and every one ends where the longest request does."""
    left = min(config.max_tokens_per_batch, config.max_batch_size * trial.max_model_len)
    requests = min(config.max_batch_size, left)
    lengths = []
    for others in range(requests - 1, -1, -1):
        lengths.append(min(trial.max_model_len, left - others))
        left -= lengths[-1]
    return _step(trial, lengths)


def _decode_step(trial: TorchRunner, config: EngineConfig) -> StepPlan:
    return _step(trial, [1] * min(config.max_batch_size, config.max_tokens_per_batch))


def _step(trial: TorchRunner, lengths: list[int]) -> StepPlan:
    end = trial.max_model_len
    tokens = [0] * end
    blocks = [0] * -(-end // trial.block_size)
    requests = [Request(f"trial-{n}", end, DEAREST, 0.0, tokens) for n in range(len(lengths))]
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
        # Not what is reserved, of which the step that failed still has its part.
        weights = trial.shape.num_parameters * trial.dtype.itemsize
        gpu = GpuMemory(total, outside=total - free - probe.reserved(), weights=weights)
        raise ValueError(
            f"there is no memory for a step of {config.max_tokens_per_batch} tokens or "
            f"{config.max_batch_size} requests: of the GPU's {size(total)}, {listed(gpu.parts)} are taken; "
            f"lower max_tokens_per_batch or max_batch_size, or {gpu.advice}"
        ) from error
