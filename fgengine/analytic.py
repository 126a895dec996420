"""Computes a profile from the published figures of a device, for hardware that is not here. Pure.

It is a roofline. A step's linear layers take the longer of reading their weights and of their arithmetic. The
output layer's weights are read too. Attention of decodes reads KV, or computes if that takes longer.
Attention of prefills computes. Copies go over the link. No device reaches its published peaks, so each rate
is multiplied by an efficiency (``Efficiency``).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from fgengine.config import EngineConfig
from fgengine.cost import CostModel, StepShape
from fgengine.devices import DEVICES, DeviceSpec, device_spec
from fgengine.efficiency import Efficiency
from fgengine.model.catalog import shape_of
from fgengine.model.shape import ModelShape
from fgengine.physics import Ceilings, layer_parameters, output_parameters
from fgengine.profile import ELEMENT_BYTES, Analytic, Profile, shape_key

Items = list[tuple[int, int]]


class Row(NamedTuple):
    """One kind of step and its predicted seconds."""

    step: str
    seconds: float
    bound_by: str
    """What takes most of the time."""


def analytic_profile(
    model: str, shape: ModelShape, spec: DeviceSpec, dtype: str, efficiency: Efficiency | None = None
) -> Profile:
    """Return the profile that the device's figures result in.

        analytic_profile("opt-13b", shape_of("opt-13b"), device_spec("a100-40gb"), "float16")

    Raises ValueError if the device has no published FLOP/s in ``dtype``.
    """
    efficiency = efficiency or Efficiency()
    return Profile(
        model=model,
        shape=shape_key(shape),
        device=spec.name,
        dtype=dtype,
        cost=analytic_cost(shape, spec, dtype, efficiency),
        ceilings=Ceilings(spec.bytes_per_second, spec.flops(dtype)),
        points=(),
        versions={},
        measured="",
        analytic=Analytic(spec, efficiency),
    )


def analytic_cost(shape: ModelShape, spec: DeviceSpec, dtype: str, efficiency: Efficiency) -> CostModel:
    """Return the cost model of the roofline. Raises ValueError if the device has no FLOP/s in ``dtype``."""
    element_bytes = ELEMENT_BYTES[dtype]
    read = efficiency.bandwidth * spec.bytes_per_second
    compute = efficiency.flops * spec.flops(dtype)
    pair = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim / compute
    return CostModel(
        step=efficiency.step_seconds
        + efficiency.layer_seconds * shape.num_layers
        + output_parameters(shape) * element_bytes / read,
        prefill_pair=pair,
        decode_context=max(shape.kv_bytes_per_token(element_bytes) / read, pair),
        copy_bytes_per_second=efficiency.link * spec.link_bytes_per_second,
        matmul_step=layer_parameters(shape) * element_bytes / read,
        matmul_token=2.0 * layer_parameters(shape) / compute,
    )


def dtype_of(dtype: str, shape: ModelShape) -> str:
    """Resolve the number format "auto" as on a GPU: the one in which the model family was released."""
    if dtype != "auto":
        return dtype
    return "float16" if shape.family == "opt" else "bfloat16"


def profile_of(config: EngineConfig) -> Profile:
    """Return the analytic profile of ``config.device_spec`` for the configured model.

    Raises ValueError if there is no such device or model, or if other settings contradict the device.
    """
    assert config.device_spec is not None
    if config.profile is not None:
        raise ValueError("--device-spec computes a profile: leave out --profile, or leave out --device-spec")
    if config.device != "auto":
        raise ValueError(
            f"--device-spec stands for a device that is not here: leave out --device {config.device}"
        )
    shape = shape_of(config.model)
    spec, efficiency = find_spec(config.device_spec)
    if config.step_overhead_ms is not None:
        efficiency = efficiency.with_step_overhead(config.step_overhead_ms / 1e3)
    return analytic_profile(config.model, shape, spec, dtype_of(config.dtype, shape), efficiency)


def find_spec(name: str) -> tuple[DeviceSpec, Efficiency]:
    """Return the device of that name in the catalog, or the one in the file of an analytic profile.

    Raises ValueError if there is no such device or file, or if the file's profile was measured.
    """
    if name in DEVICES or not Path(name).is_file():
        return device_spec(name), Efficiency()
    analytic = Profile.load(Path(name)).analytic
    if analytic is None:
        raise ValueError(f"--device-spec: {name} is a measured profile: give it with --profile")
    return analytic.spec, analytic.efficiency


def table_rows(profile: Profile, shape: ModelShape) -> list[Row]:
    """Return decode steps of 1, 16 and 64 requests with 512 tokens, and prefills of 512 and 2048 tokens.

    Steps that are longer than the model's maximum are left out.
    """
    steps: list[tuple[str, Items]] = [(f"decode {batch} x 512", [(511, 1)] * batch) for batch in (1, 16, 64)]
    steps += [(f"prefill {tokens}", [(0, tokens)]) for tokens in (512, 2048)]
    return [
        Row(name, profile.cost.step_seconds(StepShape.of(items)), bound_by(profile.cost, StepShape.of(items)))
        for name, items in steps
        if max(start + n for start, n in items) <= shape.max_position
    ]


def bound_by(cost: CostModel, step: StepShape) -> str:
    """Return what takes most of the step's time."""
    arithmetic = cost.matmul_token * step.new_tokens
    reads = cost.matmul_step >= arithmetic
    parts = {
        "reading weights": cost.matmul_step if reads else 0.0,
        "arithmetic": cost.prefill_pair * step.prefill_pairs + (0.0 if reads else arithmetic),
        "reading KV": cost.decode_context * step.decode_context,
        "overhead and output layer": cost.step,
    }
    return max(parts, key=lambda name: parts[name])


def knee_tokens(cost: CostModel) -> int:
    """Return the number of new tokens from which on a step's arithmetic takes longer than its weights."""
    return math.ceil(cost.matmul_step / cost.matmul_token)
