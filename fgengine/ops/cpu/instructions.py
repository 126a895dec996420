"""The arguments of the CPU kernels: instructions and steps, with the layout of the structs in kernels.c."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from fgengine.ops.batch import RaggedBatch

P, N = ctypes.c_void_p, ctypes.c_int64


class Kind(IntEnum):
    """The operations, as ``enum kind`` in kernels.c."""

    EMBED = 0
    RMS_NORM = 1
    LAYER_NORM = 2
    LINEAR = 3
    SILU_MUL = 4
    WRITE_KV = 5
    ATTENTION = 6
    PICK = 7


class Instruction(ctypes.Structure):
    """One operation. Strides and sizes are in elements; pointers point to the first row.

    ``ending``: compute only the rows that yield a token. ``flag``: for EMBED, look up positions and add; for
    LINEAR, apply ReLU.
    """

    _fields_ = [
        ("kind", N),
        ("ending", N),
        ("out", P),
        ("x", P),
        ("residual", P),
        ("weight", P),
        ("bias", P),
        ("rope", P),
        ("kv", P),
        ("out_stride", N),
        ("x_stride", N),
        ("residual_stride", N),
        ("size", N),
        ("outputs", N),
        ("flag", N),
        ("heads", N),
        ("kv_heads", N),
        ("dim", N),
        ("block_size", N),
        ("block_stride", N),
        ("eps", ctypes.c_double),
    ]


class Step(ctypes.Structure):
    """The rows (tokens) and requests of one step. Pointers point to the arrays of a ``RaggedBatch``.

    ``ending``: the rows that yield a token. ``pool_shift``: elements from the pool that the program was
    recorded with to the pool of this step.
    """

    _fields_ = [
        ("rows", N),
        ("ending_rows", N),
        ("requests", N),
        ("table_width", N),
        ("pool_shift", N),
        ("tokens", P),
        ("positions", P),
        ("slots", P),
        ("ending", P),
        ("tables", P),
        ("query_starts", P),
        ("context_lens", P),
    ]


def step_of(rows: int, batch: RaggedBatch | None = None) -> Step:
    """Return a step of ``rows`` tokens. The batch must outlive the step, which points into its tensors."""
    if batch is None:
        return Step(rows=rows, ending_rows=rows)
    return Step(
        rows=rows,
        ending_rows=rows,
        requests=len(batch.query_lens),
        table_width=batch.block_tables.shape[1],
        positions=batch.positions.data_ptr(),
        slots=batch.slots.data_ptr(),
        tables=batch.block_tables.data_ptr(),
        query_starts=batch.query_starts.data_ptr(),
        context_lens=batch.context_lens.data_ptr(),
    )


def run(library: ctypes.CDLL, program: Any, step: Step) -> None:
    """Run ``program``, a ctypes array of instructions. Raises MemoryError."""
    if library.run(program, len(program), ctypes.byref(step), torch.get_num_threads()):
        raise MemoryError("there is not enough memory for a step")


def rows_of(**tensors: Tensor) -> dict[str, int]:
    """Return the fields ``NAME`` (address of the first row) and ``NAME_stride`` (elements between rows)."""
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    return addresses | {f"{name}_stride": tensor.stride(0) for name, tensor in tensors.items()}


def address(tensor: Tensor | None) -> int | None:
    """Return the address of the tensor's first element; None without a tensor."""
    return None if tensor is None else tensor.data_ptr()
