"""What the kernels are told: the operations of a program, and what a step gives it. As in kernels.c."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from fgengine.ops.batch import RaggedBatch

P, N = ctypes.c_void_p, ctypes.c_int64


class Kind(IntEnum):
    EMBED = 0
    RMS_NORM = 1
    LAYER_NORM = 2
    LINEAR = 3
    SILU_MUL = 4
    WRITE_KV = 5
    ATTENTION = 6
    PICK = 7


class Instruction(ctypes.Structure):
    """One operation; strides and sizes in elements, pointers to the first row."""

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
    """One step's rows and requests."""

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
    """A step of so many rows; the batch must outlive it."""
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
    """``program``: an array of instructions. Raises MemoryError."""
    if library.run(program, len(program), ctypes.byref(step), torch.get_num_threads()):
        raise MemoryError("there is no memory for a step")


def rows_of(**tensors: Tensor) -> dict[str, int]:
    """Where each tensor's rows begin and how far apart they are: the fields ``NAME`` and ``NAME_stride``."""
    places = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    return places | {f"{name}_stride": tensor.stride(0) for name, tensor in tensors.items()}


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
