"""A complete step in one call: the model's operations are recorded once and then run by a team of threads.

If operations are called one by one, all threads wait for each other after each one, about 150 times a step. A
thread that lost its core to another program then delays all others each time. In a program, threads wait for
work, not for each other (see team.h), and no Python code runs between operations.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.cpu.instructions import Instruction, Kind, rows_of, run, step_of
from fgengine.ops.cpu.linear import WAYS_APART
from fgengine.ops.cpu.ops import CpuOps

if TYPE_CHECKING:
    from fgengine.model.loader import Model

RECORDED_ROWS = 2
"""Rows of the placeholder tensors that are used while a program is recorded."""
LINE = 32
"""Rows start at multiples of this number of elements, so that they start at a cache line."""
MIN_ROWS = 64
"""Minimum number of rows for which memory is allocated."""
POINTERS = ("out", "x", "residual")
"""Fields that point to the rows of a step. The other pointers, to weights and KV, never change."""


def record(model: Model, pool: Tensor) -> Program | None:
    """Record the model's forward pass. Returns None if our kernels do not support one of its operations.

    Args:
        pool: a KV pool in the layout of ``Llama.forward``. Later steps may use another pool of the same
            layout.
    """
    own = model.ops
    if not isinstance(own, CpuOps):
        return None
    recorder = Recorder(own.library, pool)
    placeholder = RaggedBatch.build([(0, 1, [0])] * RECORDED_ROWS, pool.shape[4], pool.device)
    rows = torch.zeros(RECORDED_ROWS, dtype=torch.int64)
    model.ops = recorder
    try:
        with torch.inference_mode():
            logits = model(rows, placeholder, pool, rows)
        return recorder.program(logits)
    except NotRecordable:
        return None
    finally:
        model.ops = own


class NotRecordable(Exception):
    """Raised for an operation that our kernels do not support."""


@dataclass(slots=True)
class Buffer:
    """Rows that one operation writes and later operations use."""

    placeholder: Tensor
    """[RECORDED_ROWS, stride]: stands for the buffer while the program is recorded."""
    made: int
    """Index of the instruction that writes the buffer first."""
    used: int
    """Index of the last instruction that uses it."""

    @property
    def stride(self) -> int:
        """Elements from row to row."""
        return self.placeholder.stride(0)

    def offset(self, address: int) -> int | None:
        """Return the bytes from the start of the first row to the address; None if it is outside that row."""
        offset = address - self.placeholder.data_ptr()
        return offset if 0 <= offset < self.stride * self.placeholder.element_size() else None


class Recorder(CpuOps):
    """Records the instructions instead of running them.

    Its tensors are placeholders with few rows, whose content is never read.
    """

    def __init__(self, library: ctypes.CDLL, pool: Tensor) -> None:
        super().__init__(library)
        self._pool = pool
        self._instructions: list[Instruction] = []
        self._buffers: list[Buffer] = []
        self._ending = False
        """Whether only the rows that yield a token are computed from here on."""

    def execute(self, instruction: Instruction, rows: int, batch: RaggedBatch | None = None) -> None:
        """Record the instruction."""
        instruction.ending = self._ending
        for name in POINTERS:
            if (address := getattr(instruction, name)) is not None:
                self._buffer_of(address).used = len(self._instructions)
        self._instructions.append(instruction)

    def new(self, like: Tensor, width: int) -> Tensor:
        """Return a placeholder [RECORDED_ROWS, width] for an operation's result."""
        stride = -(-width // LINE) * LINE
        if stride % WAYS_APART == 0:
            stride += LINE
        placeholder = like.new_empty(RECORDED_ROWS, stride)
        self._buffers.append(Buffer(placeholder, len(self._instructions), len(self._instructions)))
        return placeholder[:, :width]

    def fall_back(self) -> None:
        """Raise NotRecordable: a program cannot contain operations of torch."""
        raise NotRecordable

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        out = self.new(table, table.shape[1])
        self._embed(out, table, positions=False)
        return out

    def add_positions(self, x: Tensor, table: Tensor, batch: RaggedBatch) -> Tensor:
        self._embed(x, table, positions=True)
        return x

    def _embed(self, out: Tensor, table: Tensor, positions: bool) -> None:
        instruction = Instruction(
            kind=Kind.EMBED,
            **rows_of(out=out),
            weight=table.data_ptr(),
            size=table.shape[1],
            flag=positions,
        )
        self.execute(instruction, RECORDED_ROWS)

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        self._ending = True
        out = self.new(x, x.shape[1])
        instruction = Instruction(
            kind=Kind.PICK,
            **rows_of(out=out, x=x),
            size=x.shape[1],
        )
        self.execute(instruction, RECORDED_ROWS)
        return out

    def program(self, logits: Tensor) -> Program:
        """Return the recorded program. Raises NotRecordable if its last instruction writes no logits."""
        last = self._instructions[-1]
        if last.out != logits.data_ptr():
            raise NotRecordable
        self._buffers.pop()  # each step allocates its own logits
        return Program(self.library, self._instructions, self._buffers, logits.shape[1], self._pool)

    def _buffer_of(self, address: int) -> Buffer:
        for buffer in reversed(self._buffers):
            if buffer.offset(address) is not None:
                return buffer
        raise NotRecordable  # the tensor was created by torch


class Program:
    """A recorded forward pass. It computes steps of any size; its memory grows with the largest step."""

    def __init__(
        self,
        library: ctypes.CDLL,
        instructions: list[Instruction],
        buffers: list[Buffer],
        vocab_size: int,
        pool: Tensor,
    ) -> None:
        """``instructions`` point into the placeholders of ``buffers``, except the ``out`` of the last one."""
        self._library = library
        self._instructions = (Instruction * len(instructions))(*instructions)
        self._vocab_size = vocab_size
        self._pool = pool.data_ptr()
        self._dtype = pool.dtype
        self._slot_strides, self._pointers = _share_memory(instructions, buffers)
        self._memory: list[Tensor] = []
        self._rows = 0

    def logits(self, tokens: Tensor, batch: RaggedBatch, pool: Tensor, rows: Tensor) -> Tensor:
        """Compute a step, see ``Llama.forward``: tokens [T] int64, rows [R] int64 -> [R, vocab_size]."""
        if len(tokens) > self._rows:
            self._allocate(max(MIN_ROWS, len(tokens)))
        logits = torch.empty(len(rows), self._vocab_size, dtype=self._dtype)
        last = self._instructions[-1]
        last.out, last.out_stride = logits.data_ptr(), self._vocab_size
        step = step_of(len(tokens), batch)
        step.tokens, step.ending, step.ending_rows = tokens.data_ptr(), rows.data_ptr(), len(rows)
        step.pool_shift = (pool.data_ptr() - self._pool) // pool.element_size()
        run(self._library, self._instructions, step)
        return logits

    @property
    def num_bytes(self) -> int:
        """Bytes of memory for the largest step so far."""
        return sum(tensor.nbytes for tensor in self._memory)

    def _allocate(self, rows: int) -> None:
        self._memory.clear()
        self._memory = [torch.empty(rows, stride, dtype=self._dtype) for stride in self._slot_strides]
        self._rows = rows
        for index, name, slot, offset in self._pointers:
            setattr(self._instructions[index], name, self._memory[slot].data_ptr() + offset)


def _share_memory(
    instructions: list[Instruction], buffers: list[Buffer]
) -> tuple[list[int], list[tuple[int, str, int, int]]]:
    """Assign the buffers to memory slots. Buffers that are never in use at the same time share a slot.

    Returns:
        The strides of the slots in elements, and for each pointer into a buffer (instruction, field, slot,
        offset in bytes).
    """
    strides: list[int] = []
    busy_until: list[int] = []
    slot_of: dict[int, int] = {}
    for index, buffer in enumerate(buffers):  # in the order of their first use
        for slot, stride in enumerate(strides):
            if stride == buffer.stride and busy_until[slot] < buffer.made:
                break
        else:
            slot = len(strides)
            strides.append(buffer.stride)
            busy_until.append(-1)
        busy_until[slot] = buffer.used
        slot_of[index] = slot
    pointers = []
    for at, instruction in enumerate(instructions):
        for name in POINTERS:
            address = getattr(instruction, name)
            for index, buffer in enumerate(buffers):
                if address is not None and (offset := buffer.offset(address)) is not None:
                    pointers.append((at, name, slot_of[index], offset))
    return strides, pointers
