"""Block accounting: the invariants hold after all operations, and no block being copied is free."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fgengine.kv.manager import KVManager, Where
from fgengine.kv.pool import BlockPool
from fgengine.kv.transfer import Transfer


def begun(transfer: Transfer | None) -> Transfer:
    assert transfer is not None
    return transfer


def test_a_pool_gives_each_block_once_and_raises_if_none_is_free() -> None:
    pool = BlockPool(3)
    taken = pool.take(3)
    assert sorted(taken) == [0, 1, 2]
    with pytest.raises(ValueError, match="1 blocks needed, 0 free"):
        pool.take(1)
    pool.give(taken[:1])
    assert pool.take(1) == taken[:1]


def test_freeing_a_block_twice_raises() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.give([block])
    with pytest.raises(ValueError, match="freed twice"):
        pool.give([block])


def test_a_new_block_is_needed_only_if_the_last_one_is_full() -> None:
    kv = KVManager(4, 0, 16)
    kv.grow("a", 16)
    assert len(kv.table("a")) == 1
    assert kv.missing("a", 16) == 0
    assert kv.missing("a", 17) == 1
    kv.grow("a", 17)
    assert len(kv.table("a")) == 2
    with pytest.raises(ValueError, match="3 blocks needed"):
        kv.grow("a", 80)
    kv.check()


def test_offloaded_blocks_are_free_only_when_their_copy_is_done() -> None:
    kv = KVManager(2, 2, 16)
    kv.grow("a", 32)
    transfer = kv.begin_offload("a", 32)
    assert transfer is not None
    assert kv.where("a") is Where.OFFLOADING
    assert (kv.device.num_free, kv.incoming, kv.host.num_free) == (0, 2, 0)
    kv.finish(transfer)
    assert kv.where("a") is Where.HOST
    assert (kv.device.num_free, kv.incoming) == (2, 0)
    back = kv.begin_upload("a")
    assert kv.host.num_free == 0
    kv.finish(back)
    assert kv.where("a") is Where.DEVICE
    assert (kv.host.num_free, kv.host_available) == (0, 2)  # the copy is retained until others need blocks
    kv.check()


def test_an_offload_after_an_upload_copies_only_the_changed_blocks() -> None:
    kv = KVManager(8, 8, 16)
    kv.grow("a", 40)
    kv.finish(begun(kv.begin_offload("a", 40)))
    kv.finish(kv.begin_upload("a"))
    assert kv.unsaved_blocks("a", 40) == 0
    assert kv.unsaved_blocks("a", 41) == 1  # the third block was not full, so it has changed
    kv.grow("a", 50)
    device, transfer = list(kv.table("a")), begun(kv.begin_offload("a", 50))
    assert list(transfer.source) == device[2:]
    assert kv.device.num_free == 6  # the first two blocks become free immediately
    kv.finish(transfer)
    assert kv.host.num_free == 4
    kv.check()


def test_unchanged_kv_is_offloaded_without_a_copy_and_empty_blocks_are_not_copied() -> None:
    kv = KVManager(8, 8, 16)
    kv.grow("a", 64)  # the last two blocks hold no token
    kv.finish(begun(kv.begin_offload("a", 32)))
    kv.finish(kv.begin_upload("a"))
    kv.grow("a", 48)
    assert kv.begin_offload("a", 32) is None
    assert kv.where("a") is Where.HOST
    assert (kv.device.num_free, kv.host.num_free, kv.transfers_in_flight) == (8, 6, 0)
    kv.check()


def test_retained_copies_are_dropped_for_others_the_oldest_first() -> None:
    kv = KVManager(8, 4, 16)
    for id in "ab":
        kv.grow(id, 32)
        kv.finish(begun(kv.begin_offload(id, 32)))
    for id in "ab":
        kv.finish(kv.begin_upload(id))
    kv.grow("c", 16)
    kv.finish(begun(kv.begin_offload("c", 16)))
    assert (kv.unsaved_blocks("a", 32), kv.unsaved_blocks("b", 32)) == (2, 0)
    kv.grow("b", 64)
    with pytest.raises(ValueError, match="4 host blocks needed, 3 available"):
        kv.begin_offload("b", 64)
    assert kv.unsaved_blocks("b", 32) == 0  # nothing has changed
    kv.check()


@pytest.mark.parametrize("direction", ["offload", "upload"])
def test_release_during_a_copy_frees_source_and_target_when_it_is_done(direction: str) -> None:
    kv = KVManager(3, 3, 16)
    kv.grow("a", 48)
    transfer = begun(kv.begin_offload("a", 48))
    if direction == "upload":
        kv.finish(transfer)
        transfer = kv.begin_upload("a")
    kv.release("a")
    assert kv.where("a") is Where.NOWHERE
    assert kv.device.num_free == 0
    assert kv.incoming == 3
    kv.check()
    kv.finish(transfer)
    assert (kv.device.num_free, kv.host.num_free, kv.incoming) == (3, 3, 0)
    kv.check()


def test_kv_that_is_being_copied_cannot_grow_or_be_copied_again() -> None:
    kv = KVManager(2, 2, 16)
    kv.grow("a", 16)
    with pytest.raises(ValueError, match="1 device blocks, not 17 tokens"):
        kv.begin_offload("a", 17)
    kv.begin_offload("a", 16)
    with pytest.raises(ValueError, match="offloading"):
        kv.grow("a", 32)
    with pytest.raises(ValueError, match="no KV on the device"):
        kv.begin_offload("a", 16)
    with pytest.raises(ValueError, match="no KV on the host"):
        kv.begin_upload("a")


@pytest.mark.parametrize("saved", [0, 32])
def test_release_during_an_offload_frees_the_host_blocks_without_a_copy_immediately(saved: int) -> None:
    kv = KVManager(4, 4, 16)
    kv.grow("a", 48)
    if saved:
        kv.finish(begun(kv.begin_offload("a", saved)))
        kv.finish(kv.begin_upload("a"))
        kv.grow("a", 48)
    transfer = begun(kv.begin_offload("a", 48))
    kv.release("a")
    assert kv.host.num_free == 4 - len(transfer.target) == (3 if saved else 1)
    kv.check()
    kv.finish(transfer)
    assert (kv.device.num_free, kv.host.num_free) == (4, 4)


class Accounting(RuleBasedStateMachine):
    """Any order of growing, offloading, uploading, releasing and finishing late, in any order."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.kv = KVManager(num_device_blocks=12, num_host_blocks=7, block_size=8)
        self.flying: list[Transfer] = []
        self.saved: dict[str, int] = {}
        """Tokens of each request's last offload."""

    @rule(target=requests, name=st.sampled_from([f"r{i}" for i in range(8)]))
    def name(self, name: str) -> str:
        return name

    @rule(request=requests, tokens=st.integers(1, 70))
    def grow(self, request: str, tokens: int) -> None:
        at_rest = self.kv.where(request) in (Where.NOWHERE, Where.DEVICE)
        possible = at_rest and self.kv.missing(request, tokens) <= self.kv.device.num_free
        if possible:
            self.kv.grow(request, tokens)
            assert len(self.kv.table(request)) >= self.kv.blocks_for(tokens)
        else:
            before = self.kv.device.num_free
            with pytest.raises(ValueError, match=r"needed|cannot grow"):
                self.kv.grow(request, tokens)
            assert self.kv.device.num_free == before

    @rule(request=requests, tokens=st.integers(1, 70))
    def offload(self, request: str, tokens: int) -> None:
        """Offload at least as many tokens as the last offload of the request: tokens are never removed."""
        kv, blocks = self.kv, self.kv.blocks_for(tokens)
        before = (kv.device.num_free, kv.host_available, kv.incoming)
        saved = self.saved.get(request, 0)
        tokens = max(tokens, saved)
        possible = kv.where(request) is Where.DEVICE and (
            (blocks := kv.blocks_for(tokens)) <= min(len(kv.table(request)), kv.host_available)
        )
        if possible:
            unsaved = kv.unsaved_blocks(request, tokens)
            transfer = kv.begin_offload(request, tokens)
            assert unsaved == (len(transfer.source) if transfer else 0)
            self.flying += [transfer] if transfer else []
            self.saved[request] = tokens
            assert kv.num_blocks(request) == blocks
        else:
            with pytest.raises(ValueError, match=r"no KV|needed|not \d+ tokens"):
                kv.begin_offload(request, tokens)
            assert (kv.device.num_free, kv.host_available, kv.incoming) == before

    @rule(request=requests)
    def upload(self, request: str) -> None:
        fits = self.kv.num_blocks(request) <= self.kv.device.num_free
        if self.kv.where(request) is Where.HOST and fits:
            self.flying.append(self.kv.begin_upload(request))
        else:
            with pytest.raises(ValueError, match=r"no KV|needed"):
                self.kv.begin_upload(request)

    @rule(request=requests)
    def release(self, request: str) -> None:
        self.kv.release(request)
        self.saved.pop(request, None)
        assert self.kv.where(request) is Where.NOWHERE

    @rule(data=st.data())
    def finish_one(self, data: st.DataObject) -> None:
        if self.flying:
            self.kv.finish(self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1))))

    @invariant()
    def nothing_is_lost(self) -> None:
        self.kv.check()
        assert self.kv.transfers_in_flight == len(self.flying)

    def teardown(self) -> None:
        for transfer in self.flying:
            self.kv.finish(transfer)
        for i in range(8):
            self.kv.release(f"r{i}")
        self.kv.check()
        assert self.kv.device.num_free == 12
        assert self.kv.host.num_free == 7


TestAccounting = pytest.mark.slow(Accounting.TestCase)
TestAccounting.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
