"""Where every request's KV is: block tables of both tiers and the copies between them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from fgengine.kv.pool import BlockPool
from fgengine.kv.transfer import Direction, Transfer


class Where(Enum):
    NOWHERE = "nowhere"
    DEVICE = "device"
    HOST = "host"
    OFFLOADING = "offloading"
    UPLOADING = "uploading"


@dataclass(slots=True)
class _Holding:
    device: list[int] = field(default_factory=list)
    host: list[int] = field(default_factory=list)
    transfer: Transfer | None = None


class KVManager:
    """Accounts for two pools of blocks; it moves no bytes itself.

    A transfer takes its target blocks when it begins and gives its source blocks back when it has
    finished, so a block that is being copied belongs to nobody else. Invariant at every tier, always:
    free + held by requests + held by abandoned transfers = total.
    """

    def __init__(self, num_device_blocks: int, num_host_blocks: int, block_size: int) -> None:
        self.device = BlockPool(num_device_blocks)
        self.host = BlockPool(num_host_blocks)
        self.block_size = block_size
        self._holdings: dict[str, _Holding] = {}
        self._transfers: dict[int, Transfer] = {}
        self._abandoned: set[int] = set()
        """Transfers whose request was released midway: both ends are freed when the copy is done."""
        self._next_transfer = 0
        self.incoming = 0
        """Device blocks that running copies will give back."""

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def where(self, request_id: str) -> Where:
        holding = self._holdings.get(request_id)
        if holding is None:
            return Where.NOWHERE
        if holding.transfer is not None:
            return Where.OFFLOADING if holding.transfer.direction == "offload" else Where.UPLOADING
        return Where.DEVICE if holding.device else Where.HOST

    def table(self, request_id: str) -> list[int]:
        """The device blocks of a request that is on the device, in token order."""
        return self._holdings[request_id].device

    def table_with_room(self, request_id: str, num_tokens: int) -> list[int] | None:
        """The request's device blocks if its KV rests there and ``num_tokens`` tokens fit; else None."""
        holding = self._holdings.get(request_id)
        if (
            holding is None
            or holding.transfer is not None
            or len(holding.device) * self.block_size < num_tokens
        ):
            return None
        return holding.device

    def num_blocks(self, request_id: str) -> int:
        """Blocks the request's KV fills, at whichever tier it is."""
        holding = self._holdings.get(request_id)
        return 0 if holding is None else max(len(holding.device), len(holding.host))

    def missing(self, request_id: str, num_tokens: int) -> int:
        """Device blocks to find before ``num_tokens`` tokens of the request fit on the device."""
        holding = self._holdings.get(request_id)
        return self.blocks_for(num_tokens) - (0 if holding is None else len(holding.device))

    def grow(self, request_id: str, num_tokens: int) -> None:
        """Lengthen the device table to hold ``num_tokens`` tokens.

        Raises ValueError when the pool is short or the KV is not on the device.
        """
        if self.where(request_id) not in (Where.NOWHERE, Where.DEVICE):
            raise ValueError(f"the KV of {request_id} is {self.where(request_id).value}; it cannot grow")
        missing = self.missing(request_id, num_tokens)
        if missing > 0:
            blocks = self.device.take(missing)
            self._holdings.setdefault(request_id, _Holding()).device.extend(blocks)

    def begin_offload(self, request_id: str) -> Transfer:
        """Device to host. Raises ValueError when it is not on the device or the host pool is short."""
        holding = self._holdings.get(request_id)
        if holding is None or self.where(request_id) is not Where.DEVICE:
            raise ValueError(f"{request_id} has no KV on the device to offload")
        holding.host = self.host.take(len(holding.device))
        self.incoming += len(holding.device)
        return self._begin(request_id, holding, "offload")

    def begin_upload(self, request_id: str) -> Transfer:
        """Host to device. Raises ValueError when it is not on the host or the device pool is short."""
        holding = self._holdings.get(request_id)
        if holding is None or self.where(request_id) is not Where.HOST:
            raise ValueError(f"{request_id} has no KV on the host to upload")
        holding.device = self.device.take(len(holding.host))
        return self._begin(request_id, holding, "upload")

    def finish(self, transfer: Transfer) -> None:
        """The copy's bytes are in place: the source blocks are free from now on."""
        if self._transfers.pop(transfer.id, None) is not transfer:
            raise ValueError(f"transfer {transfer.id} is not in flight")
        offload = transfer.direction == "offload"
        source, target = (self.device, self.host) if offload else (self.host, self.device)
        source.give(transfer.source)
        if offload:
            self.incoming -= len(transfer.source)
        if transfer.id in self._abandoned:
            self._abandoned.remove(transfer.id)
            target.give(transfer.target)
            if not offload:
                self.incoming -= len(transfer.target)
            return
        holding = self._holdings[transfer.request_id]
        holding.transfer = None
        if offload:
            holding.device = []
        else:
            holding.host = []

    def release(self, request_id: str) -> None:
        """Forget the request's KV, from any state; blocks in a running copy are freed when it is done."""
        holding = self._holdings.pop(request_id, None)
        if holding is None:
            return
        if holding.transfer is None:
            self.device.give(holding.device)
            self.host.give(holding.host)
            return
        self._abandoned.add(holding.transfer.id)
        if holding.transfer.direction == "upload":
            self.incoming += len(holding.device)

    @property
    def transfers_in_flight(self) -> int:
        return len(self._transfers)

    def check(self) -> None:
        """Raise AssertionError where the invariants do not hold. For tests: O(blocks)."""
        for pool, tier in ((self.device, "device"), (self.host, "host")):
            held: list[int] = []
            for holding in self._holdings.values():
                held += holding.device if tier == "device" else holding.host
            for transfer_id in self._abandoned:
                transfer = self._transfers[transfer_id]
                on_source = (transfer.direction == "offload") == (tier == "device")
                held += transfer.source if on_source else transfer.target
            if len(held) != len(set(held)):
                raise AssertionError(f"a {tier} block has two holders")
            if len(held) + pool.num_free != pool.num_blocks:
                raise AssertionError(f"{tier}: {len(held)} held + {pool.num_free} free != {pool.num_blocks}")
        expected = sum(
            len(t.source if t.direction == "offload" else t.target)
            for t in self._transfers.values()
            if t.direction == "offload" or t.id in self._abandoned
        )
        if self.incoming != expected:
            raise AssertionError(f"incoming is {self.incoming}, transfers say {expected}")

    def _begin(self, request_id: str, holding: _Holding, direction: Direction) -> Transfer:
        offload = direction == "offload"
        transfer = Transfer(
            id=self._next_transfer,
            request_id=request_id,
            direction=direction,
            source=tuple(holding.device if offload else holding.host),
            target=tuple(holding.host if offload else holding.device),
        )
        self._next_transfer += 1
        self._transfers[transfer.id] = transfer
        holding.transfer = transfer
        return transfer
