"""The KV manager: records where each request's KV is, in which blocks, and what is being copied. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

from fgengine.kv.pool import BlockPool
from fgengine.kv.transfer import Direction, Transfer


class Where(Enum):
    """Where a request's KV is."""

    NOWHERE = "nowhere"
    DEVICE = "device"
    HOST = "host"
    OFFLOADING = "offloading"
    UPLOADING = "uploading"


@dataclass(slots=True)
class Holding:
    """The blocks of one request in both pools."""

    device: list[int] = field(default_factory=list)
    """Device blocks in token order."""
    host: list[int] = field(default_factory=list)
    """Host blocks in token order. For KV on the device: a copy of the first ``saved_tokens`` tokens, or
    empty."""
    saved_tokens: int = 0
    """Leading tokens whose KV is in ``host``, or will be when the running offload ends."""
    transfer: Transfer | None = None
    """The running copy, if any."""


class KVManager:
    """Accounts for the blocks of the device pool and the host pool; it copies no bytes itself.

    A transfer takes its target blocks when it begins. An offload frees its source blocks when it has
    finished. A block that is being copied therefore has exactly one owner.

    KV is append-only, so the host blocks of a request remain valid after its upload. They are retained, and
    the next offload copies only the blocks written since then. If host blocks run short, retained copies are
    dropped, the oldest first.

    Invariant of each pool: free + held by requests + held by abandoned transfers = total.

        kv = KVManager(num_device_blocks=100, num_host_blocks=400, block_size=16)
        kv.grow("a", 20)                        # takes two device blocks
        transfer = kv.begin_offload("a", 20)    # to be copied by a CopyEngine
        kv.finish(transfer)                     # frees the device blocks
    """

    def __init__(self, num_device_blocks: int, num_host_blocks: int, block_size: int) -> None:
        """``block_size``: tokens in a block."""
        self.device = BlockPool(num_device_blocks)
        self.host = BlockPool(num_host_blocks)
        self.block_size = block_size
        self.on_device: dict[str, Holding] = {}
        """Requests whose KV is on the device, by id. Each request with KV is in exactly one of these
        dicts."""
        self.on_host: dict[str, Holding] = {}
        """Requests whose KV is on the host, by id."""
        self._in_copy: dict[str, Holding] = {}
        """Requests whose KV is being copied, by id."""
        self._transfers: dict[int, Transfer] = {}
        self._abandoned: set[int] = set()
        """Ids of transfers whose request was released; source and target are freed when the copy is done."""
        self._retained: OrderedDict[str, None] = OrderedDict()
        """Ids of requests on the device with a copy of their KV on the host, the oldest copy first."""
        self._retained_blocks = 0
        """Host blocks of these copies."""
        self._next_transfer = 0
        self.incoming = 0
        """Device blocks that running copies will free."""
        self.in_flight: dict[Direction, int] = {"offload": 0, "upload": 0}
        """Blocks being copied in each direction."""

    @property
    def host_available(self) -> int:
        """Host blocks that offloads can take: the free ones, and those of retained copies."""
        return self.host.num_free + self._retained_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def where(self, request_id: str) -> Where:
        """Return where the request's KV is; NOWHERE if it has none."""
        if request_id in self.on_device:
            return Where.DEVICE
        if request_id in self.on_host:
            return Where.HOST
        holding = self._in_copy.get(request_id)
        if holding is None or holding.transfer is None:
            return Where.NOWHERE
        return Where.OFFLOADING if holding.transfer.direction == "offload" else Where.UPLOADING

    def table(self, request_id: str) -> list[int]:
        """Return the device blocks, in token order, of a request whose KV is on the device."""
        return self.on_device[request_id].device

    def table_with_room(self, request_id: str, num_tokens: int) -> list[int] | None:
        """Return the request's device blocks, or None if ``num_tokens`` tokens of it do not fit there."""
        holding = self.on_device.get(request_id)
        if holding is None or len(holding.device) * self.block_size < num_tokens:
            return None
        return holding.device

    def num_blocks(self, request_id: str) -> int:
        """Return the number of blocks of the request's KV, on the device or on the host."""
        holding = self._find(request_id)
        return 0 if holding is None else max(len(holding.device), len(holding.host))

    def missing(self, request_id: str, num_tokens: int) -> int:
        """Return how many more device blocks the request needs to hold ``num_tokens`` tokens."""
        holding = self._find(request_id)
        return self.blocks_for(num_tokens) - (0 if holding is None else len(holding.device))

    def unsaved_blocks(self, request_id: str, num_tokens: int) -> int:
        """Return how many blocks an offload of the request's first ``num_tokens`` tokens must copy."""
        return self.blocks_for(num_tokens) - self._saved_blocks(self.on_device[request_id], num_tokens)

    def grow(self, request_id: str, num_tokens: int) -> None:
        """Take device blocks until the request's table holds ``num_tokens`` tokens.

        Raises ValueError if the pool has too few free blocks, or if the request has KV that is not on the
        device.
        """
        if self.where(request_id) not in (Where.NOWHERE, Where.DEVICE):
            raise ValueError(f"the KV of {request_id} is {self.where(request_id).value}; it cannot grow")
        missing = self.missing(request_id, num_tokens)
        if missing > 0:
            blocks = self.device.take(missing)
            self.on_device.setdefault(request_id, Holding()).device.extend(blocks)

    def begin_offload(self, request_id: str, num_tokens: int) -> Transfer | None:
        """Begin to copy the KV of the request's first ``num_tokens`` tokens from the device to the host.

        Device blocks whose copy is on the host already, and blocks without tokens, become free immediately.

        Returns the transfer of the other blocks, or None if there are none; the KV is then on the host
        already.

        Raises ValueError, without any change, if the KV is not on the device, if ``num_tokens`` is not
        positive or more than the device table holds, or if the host pool has too few blocks.
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
            raise ValueError(f"{needed} host blocks needed, {self.host_available} available")
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
        """Begin to copy the request's KV from the host to the device.

        Raises ValueError if the KV is not on the host or the device pool has too few free blocks.
        """
        holding = self.on_host.get(request_id)
        if holding is None:
            raise ValueError(f"{request_id} has no KV on the host to upload")
        holding.device = self.device.take(len(holding.host))
        del self.on_host[request_id]
        return self._begin(request_id, holding, "upload", holding.host, holding.device)

    def finish(self, transfer: Transfer) -> None:
        """Record that the copy is complete. The device blocks of an offload become free.

        Raises ValueError if the transfer is not in flight.
        """
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
        """Free all blocks of the request. Blocks of a running copy are freed when the copy is done."""
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
        """Number of running transfers."""
        return len(self._transfers)

    def check(self) -> None:
        """Raise AssertionError if an invariant is violated. For tests; costs O(blocks)."""
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
        """Return the request's holding in any state, or None."""
        return self.on_device.get(request_id) or self.on_host.get(request_id) or self._in_copy.get(request_id)

    def _saved_blocks(self, holding: Holding, num_tokens: int) -> int:
        """Return the number of leading blocks whose copy on the host is valid.

        ``num_tokens`` tokens are computed now. The copy of a block that was not full is invalid if a token
        was added since.
        """
        if holding.saved_tokens == num_tokens:
            return self.blocks_for(num_tokens)
        return holding.saved_tokens // self.block_size

    def _unretain(self, request_id: str, holding: Holding) -> None:
        """Stop counting the request's host blocks as available for others."""
        if request_id in self._retained:
            del self._retained[request_id]
            self._retained_blocks -= len(holding.host)

    def _reclaim(self, blocks: int) -> None:
        """Drop retained copies, the oldest first, until ``blocks`` host blocks are free."""
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
