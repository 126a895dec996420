"""A whole step as one call: a model's operations, recorded once and gone through by all threads together.

Called one by one, each operation ends with all threads waiting for each other, some 150 times a step, and a
thread whose processor another program took holds up all others each time. In a program they wait for work,
not for each other (see team.h), and Python is not asked in between.
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
"""Of the stand-ins for a step's rows while a program is recorded."""
LINE = 32
"""Rows begin at multiples of this many elements: whole cache lines."""
MIN_ROWS = 64
POINTERS = ("out", "x", "residual")
"""Fields that point to rows of a step; the others point to weights and KV, which stay where they are."""


def record(model: Model, pool: Tensor) -> Program | None:
    """The model's forward pass as a program; None where some of it is not for our kernels.

    Args:
        pool: a KV pool as ``forward`` takes it; a step's may be another one of the same layout.
    """
    own = model.ops
    if not isinstance(own, CpuOps):
        return None
    recorder = Recorder(own.library, pool)
    nothing = RaggedBatch.build([(0, 1, [0])] * RECORDED_ROWS, pool.shape[4], pool.device)
    rows = torch.zeros(RECORDED_ROWS, dtype=torch.int64)
    model.ops = recorder
    try:
        with torch.inference_mode():
            logits = model(rows, nothing, pool, rows)
        return recorder.program(logits)
    except NotRecordable:
        return None
    finally:
        model.ops = own


class NotRecordable(Exception):
    """An operation that our kernels do not compute."""


@dataclass(slots=True)
class Buffer:
    """Rows that one operation makes and others use."""

    stand_in: Tensor
    """[RECORDED_ROWS, width], its rows as far apart as the buffer's."""
    made: int
    """The instruction that makes it."""
    used: int
    """The last one that uses it."""

    @property
    def stride(self) -> int:
        return self.stand_in.stride(0)

    def offset(self, address: int) -> int | None:
        """Bytes from a row's beginning to the address; None: it is not in the first row."""
        beyond = address - self.stand_in.data_ptr()
        return beyond if 0 <= beyond < self.stride * self.stand_in.element_size() else None


class Recorder(CpuOps):
    """Keeps the instructions. Tensors are stand-ins with few rows, whose content is never looked at."""

    def __init__(self, library: ctypes.CDLL, pool: Tensor) -> None:
        super().__init__(library)
        self._pool = pool
        self._instructions: list[Instruction] = []
        self._buffers: list[Buffer] = []
        self._ending = False
        """Whether only the rows that yield a token are still computed."""

    def execute(self, instruction: Instruction, rows: int, batch: RaggedBatch | None = None) -> None:
        instruction.ending = self._ending
        for name in POINTERS:
            if (address := getattr(instruction, name)) is not None:
                self._buffer_of(address).used = len(self._instructions)
        self._instructions.append(instruction)

    def new(self, like: Tensor, width: int) -> Tensor:
        stride = -(-width // LINE) * LINE
        if stride % WAYS_APART == 0:
            stride += LINE
        stand_in = like.new_empty(RECORDED_ROWS, stride)
        self._buffers.append(Buffer(stand_in, len(self._instructions), len(self._instructions)))
        return stand_in[:, :width]

    def fall_back(self) -> None:
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
        """Raises NotRecordable where the last instruction does not give the logits."""
        last = self._instructions[-1]
        if last.out != logits.data_ptr():
            raise NotRecordable
        self._buffers.pop()  # each step's logits are a tensor of their own
        return Program(self.library, self._instructions, self._buffers, logits.shape[1], self._pool)

    def _buffer_of(self, address: int) -> Buffer:
        for buffer in reversed(self._buffers):
            if buffer.offset(address) is not None:
                return buffer
        raise NotRecordable  # something that torch made in between


class Program:
    """Computes steps of any size; its memory grows with the largest."""

    def __init__(
        self,
        library: ctypes.CDLL,
        instructions: list[Instruction],
        buffers: list[Buffer],
        vocab_size: int,
        pool: Tensor,
    ) -> None:
        """``instructions`` point into the buffers' stand-ins, but for where the last one puts the logits."""
        self._library = library
        self._instructions = (Instruction * len(instructions))(*instructions)
        self._vocab_size = vocab_size
        self._pool = pool.data_ptr()
        self._dtype = pool.dtype
        self._slots, self._places = _share_memory(instructions, buffers)
        self._memory: list[Tensor] = []
        self._rows = 0

    def logits(self, tokens: Tensor, batch: RaggedBatch, pool: Tensor, rows: Tensor) -> Tensor:
        """As ``Llama.forward``: tokens [T] int64, rows [R] int64 -> [R, vocab_size]."""
        if len(tokens) > self._rows:
            self._make_room(max(MIN_ROWS, len(tokens)))
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
        """Of memory that the largest step so far took."""
        return sum(tensor.nbytes for tensor in self._memory)

    def _make_room(self, rows: int) -> None:
        self._memory.clear()
        self._memory = [torch.empty(rows, stride, dtype=self._dtype) for stride in self._slots]
        self._rows = rows
        for index, name, slot, offset in self._places:
            setattr(self._instructions[index], name, self._memory[slot].data_ptr() + offset)


def _share_memory(
    instructions: list[Instruction], buffers: list[Buffer]
) -> tuple[list[int], list[tuple[int, str, int, int]]]:
    """Buffers that are never in use together stand in one place.

    Returns:
        the places' strides, and for each pointer to one (instruction, field, place, bytes beyond it).
    """
    strides: list[int] = []
    busy_until: list[int] = []
    slot_of: dict[int, int] = {}
    for index, buffer in enumerate(buffers):  # in the order in which they are made
        for slot, stride in enumerate(strides):
            if stride == buffer.stride and busy_until[slot] < buffer.made:
                break
        else:
            slot = len(strides)
            strides.append(buffer.stride)
            busy_until.append(-1)
        busy_until[slot] = buffer.used
        slot_of[index] = slot
    places = []
    for at, instruction in enumerate(instructions):
        for name in POINTERS:
            address = getattr(instruction, name)
            for index, buffer in enumerate(buffers):
                if address is not None and (offset := buffer.offset(address)) is not None:
                    places.append((at, name, slot_of[index], offset))
    return strides, places
