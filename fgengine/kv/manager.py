"""Where every request's KV is: block tables of both tiers and the copies between them. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

from fgengine.kv.pool import BlockPool
from fgengine.kv.transfer import Direction, Transfer


class Where(Enum):
    NOWHERE = "nowhere"
    DEVICE = "device"
    HOST = "host"
    OFFLOADING = "offloading"
    UPLOADING = "uploading"


@dataclass(slots=True)
class Holding:
    """A request's blocks at both tiers."""

    device: list[int] = field(default_factory=list)
    host: list[int] = field(default_factory=list)
    """Where the KV is on the device: a copy of its first ``saved_tokens`` tokens, or empty."""
    saved_tokens: int = 0
    """Leading tokens whose KV ``host`` holds, or will hold when the running offload ends."""
    transfer: Transfer | None = None


class KVManager:
    """Accounts for two pools of blocks; it moves no bytes itself.

    A transfer takes its target blocks when it begins and gives an offload's source blocks back when it has
    finished, so a block that is being copied has one owner. KV is append-only, so the host blocks of a
    request stay valid after its upload: they are retained, and the next offload copies only the blocks
    written since. Retained copies are given up, the oldest first, when others need host blocks.
    Invariant at every tier, always: free + held by requests + held by abandoned transfers = total.
    """

    def __init__(self, num_device_blocks: int, num_host_blocks: int, block_size: int) -> None:
        self.device = BlockPool(num_device_blocks)
        self.host = BlockPool(num_host_blocks)
        self.block_size = block_size
        self.on_device: dict[str, Holding] = {}
        """By request id. A request with KV is in one of these three: which one says where its KV is."""
        self.on_host: dict[str, Holding] = {}
        self._in_copy: dict[str, Holding] = {}
        """On its way from one to the other."""
        self._transfers: dict[int, Transfer] = {}
        self._abandoned: set[int] = set()
        """Transfers whose request was released midway: both ends are freed when the copy is done."""
        self._retained: OrderedDict[str, None] = OrderedDict()
        """Requests on the device with a copy of their KV on the host, the oldest copy first."""
        self._retained_blocks = 0
        self._next_transfer = 0
        self.incoming = 0
        """Device blocks that running copies will give back."""
        self.in_flight: dict[Direction, int] = {"offload": 0, "upload": 0}
        """Blocks that are being copied in each direction."""

    @property
    def host_available(self) -> int:
        """Host blocks that offloads can take: the free ones, and those of retained copies."""
        return self.host.num_free + self._retained_blocks

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def where(self, request_id: str) -> Where:
        if request_id in self.on_device:
            return Where.DEVICE
        if request_id in self.on_host:
            return Where.HOST
        holding = self._in_copy.get(request_id)
        if holding is None or holding.transfer is None:
            return Where.NOWHERE
        return Where.OFFLOADING if holding.transfer.direction == "offload" else Where.UPLOADING

    def table(self, request_id: str) -> list[int]:
        """The device blocks of a request that is on the device, in token order."""
        return self.on_device[request_id].device

    def table_with_room(self, request_id: str, num_tokens: int) -> list[int] | None:
        """The request's device blocks if its KV rests there and ``num_tokens`` tokens fit; else None."""
        holding = self.on_device.get(request_id)
        if holding is None or len(holding.device) * self.block_size < num_tokens:
            return None
        return holding.device

    def num_blocks(self, request_id: str) -> int:
        """Blocks the request's KV fills, at whichever tier it is."""
        holding = self._find(request_id)
        return 0 if holding is None else max(len(holding.device), len(holding.host))

    def missing(self, request_id: str, num_tokens: int) -> int:
        """Device blocks to find before ``num_tokens`` tokens of the request fit on the device."""
        holding = self._find(request_id)
        return self.blocks_for(num_tokens) - (0 if holding is None else len(holding.device))

    def unsaved_blocks(self, request_id: str, num_tokens: int) -> int:
        """Blocks that an offload of the request's first ``num_tokens`` tokens has to copy."""
        return self.blocks_for(num_tokens) - self._saved_blocks(self.on_device[request_id], num_tokens)

    def grow(self, request_id: str, num_tokens: int) -> None:
        """Lengthen the device table to hold ``num_tokens`` tokens.

        Raises ValueError when the pool is short or the KV is not on the device.
        """
        if self.where(request_id) not in (Where.NOWHERE, Where.DEVICE):
            raise ValueError(f"the KV of {request_id} is {self.where(request_id).value}; it cannot grow")
        missing = self.missing(request_id, num_tokens)
        if missing > 0:
            blocks = self.device.take(missing)
            self.on_device.setdefault(request_id, Holding()).device.extend(blocks)

    def begin_offload(self, request_id: str, num_tokens: int) -> Transfer | None:
        """Device to host: the KV of the request's first ``num_tokens`` tokens.

        Device blocks that the host has a copy of, and those that hold no token, are free at once. Returns the
        copy of the others; None where there are none: the KV is on the host now.

        Raises ValueError when the KV is not on the device, ``num_tokens`` is not positive or more than the
        device table holds, or the host pool is short; nothing has changed then.
        """
        holding = self.on_device.get(request_id)
        if holding is None:
            raise ValueError(f"{request_id} has no KV on the device to offload")
        needed = self.blocks_for(num_tokens)
        if not 0 < needed <= len(holding.device):
            raise ValueError(
                f"{request_id} holds {len(holding.device)} device blocks, not {num_tokens} tokens"
            )
        if needed > self.host_available:
            raise ValueError(f"{needed} host blocks wanted, {self.host_available} available")
        self._unretain(request_id, holding)
        self._reclaim(needed - len(holding.host))
        holding.host += self.host.take(needed - len(holding.host))
        saved = self._saved_blocks(holding, num_tokens)
        unsaved = holding.device[saved:needed]
        self.device.give(holding.device[:saved] + holding.device[needed:])
        holding.device, holding.saved_tokens = unsaved, num_tokens
        del self.on_device[request_id]
        if not unsaved:
            self.on_host[request_id] = holding
            return None
        self.incoming += len(unsaved)
        return self._begin(request_id, holding, "offload", unsaved, holding.host[saved:])

    def begin_upload(self, request_id: str) -> Transfer:
        """Host to device. Raises ValueError when it is not on the host or the device pool is short."""
        holding = self.on_host.get(request_id)
        if holding is None:
            raise ValueError(f"{request_id} has no KV on the host to upload")
        holding.device = self.device.take(len(holding.host))
        del self.on_host[request_id]
        return self._begin(request_id, holding, "upload", holding.host, holding.device)

    def finish(self, transfer: Transfer) -> None:
        """The copy's bytes are in place: an offload's device blocks are free from now on."""
        if self._transfers.pop(transfer.id, None) is not transfer:
            raise ValueError(f"transfer {transfer.id} is not in flight")
        offload = transfer.direction == "offload"
        self.in_flight[transfer.direction] -= len(transfer.source)
        if transfer.id in self._abandoned:
            self._abandoned.remove(transfer.id)
            device, host = transfer.source, transfer.target
            if not offload:
                device, host = host, device
            self.device.give(device)
            self.host.give(host)
            self.incoming -= len(device)
            return
        holding = self._in_copy.pop(transfer.request_id)
        holding.transfer = None
        if offload:
            self.device.give(transfer.source)
            self.incoming -= len(transfer.source)
            holding.device = []
            self.on_host[transfer.request_id] = holding
        else:
            self.on_device[transfer.request_id] = holding
            self._retained[transfer.request_id] = None
            self._retained_blocks += len(holding.host)

    def release(self, request_id: str) -> None:
        """Forget the request's KV, from any state; blocks in a running copy are freed when it is done."""
        holding = (
            self.on_device.pop(request_id, None)
            or self.on_host.pop(request_id, None)
            or self._in_copy.pop(request_id, None)
        )
        if holding is None:
            return
        self._unretain(request_id, holding)
        if holding.transfer is None:
            self.device.give(holding.device)
            self.host.give(holding.host)
            return
        self._abandoned.add(holding.transfer.id)
        if holding.transfer.direction == "upload":
            self.incoming += len(holding.device)
        else:
            self.host.give(holding.host[: len(holding.host) - len(holding.transfer.target)])

    @property
    def transfers_in_flight(self) -> int:
        return len(self._transfers)

    def check(self) -> None:
        """Raise AssertionError where the invariants do not hold. For tests: O(blocks)."""
        for pool, tier in ((self.device, "device"), (self.host, "host")):
            held: list[int] = []
            for holding in chain(self.on_device.values(), self.on_host.values(), self._in_copy.values()):
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
        for direction, blocks in self.in_flight.items():
            flying = sum(len(t.source) for t in self._transfers.values() if t.direction == direction)
            if blocks != flying:
                raise AssertionError(f"{direction}: {blocks} blocks in flight, transfers say {flying}")
        for id, holding in self.on_device.items():
            if not holding.device or holding.transfer is not None:
                raise AssertionError(f"{id} is said to be on the device, but holds {holding}")
        for id, holding in self.on_host.items():
            if holding.device or not holding.host or holding.transfer is not None:
                raise AssertionError(f"{id} is said to be on the host, but holds {holding}")
        for id, holding in self._in_copy.items():
            if holding.transfer is None:
                raise AssertionError(f"{id} is said to be in a copy, but there is none")
        retained = {id for id, holding in self.on_device.items() if holding.host}
        if retained != set(self._retained):
            raise AssertionError(f"retained are {set(self._retained)}, holdings say {retained}")
        if self._retained_blocks != sum(len(self.on_device[id].host) for id in retained):
            raise AssertionError(f"{self._retained_blocks} retained blocks, holdings say otherwise")

    def _find(self, request_id: str) -> Holding | None:
        """What the request holds, wherever that is."""
        return self.on_device.get(request_id) or self.on_host.get(request_id) or self._in_copy.get(request_id)

    def _saved_blocks(self, holding: Holding, num_tokens: int) -> int:
        """Leading blocks that the host has as they are, now that ``num_tokens`` tokens are computed. A block
        that was not full when it was copied has changed if a token has come since."""
        if holding.saved_tokens == num_tokens:
            return self.blocks_for(num_tokens)
        return holding.saved_tokens // self.block_size

    def _unretain(self, request_id: str, holding: Holding) -> None:
        """Its host blocks are no longer there for others to take."""
        if request_id in self._retained:
            del self._retained[request_id]
            self._retained_blocks -= len(holding.host)

    def _reclaim(self, blocks: int) -> None:
        """Give up retained copies until so many host blocks are free."""
        while self.host.num_free < blocks:
            request_id = next(iter(self._retained))
            holding = self.on_device[request_id]
            self._unretain(request_id, holding)
            self.host.give(holding.host)
            holding.host, holding.saved_tokens = [], 0

    def _begin(
        self, request_id: str, holding: Holding, direction: Direction, source: list[int], target: list[int]
    ) -> Transfer:
        transfer = Transfer(self._next_transfer, request_id, direction, tuple(source), tuple(target))
        self._next_transfer += 1
        self._transfers[transfer.id] = transfer
        self.in_flight[direction] += len(source)
        holding.transfer = transfer
        self._in_copy[request_id] = holding
        return transfer
