"""The free list of one KV pool."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """A pool of the blocks 0 .. num_blocks - 1, each free or used. Each operation costs O(1) per block."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ValueError(f"a pool cannot have {num_blocks} blocks")
        self.num_blocks = num_blocks
        # Blocks are taken from the end: low numbers first, so a lightly used pool touches few memory pages.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._used = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        """Number of free blocks."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take ``count`` free blocks. Raises ValueError, without any change, if fewer are free."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks needed, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._used[block] = 1
        return taken

    def give(self, blocks: Iterable[int]) -> None:
        """Free the blocks. Raises ValueError if a block is free already."""
        for block in blocks:
            if not self._used[block]:
                raise ValueError(f"block {block} is freed twice")
            self._used[block] = 0
            self._free.append(block)
