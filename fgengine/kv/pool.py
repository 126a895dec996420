"""The free list of one tier of KV memory."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Blocks 0 .. num_blocks - 1 of one tier, each free or used; taking and giving back is O(1) a block."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ValueError(f"a pool cannot have {num_blocks} blocks")
        self.num_blocks = num_blocks
        # Taken from the end, so low numbers go first and a lightly used pool stays in few pages.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._used = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Raises ValueError when fewer than ``count`` blocks are free; the pool is then unchanged."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._used[block] = 1
        return taken

    def give(self, blocks: Iterable[int]) -> None:
        """Raises ValueError for a block that is free already."""
        for block in blocks:
            if not self._used[block]:
                raise ValueError(f"block {block} is given back twice")
            self._used[block] = 0
            self._free.append(block)
