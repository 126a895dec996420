"""Block accounting: invariants hold after anything, and nothing that is being copied is free."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fgengine.kv.manager import KVManager, Where
from fgengine.kv.pool import BlockPool
from fgengine.kv.transfer import Transfer


def test_a_pool_hands_out_each_block_once_and_refuses_to_go_short() -> None:
    pool = BlockPool(3)
    taken = pool.take(3)
    assert sorted(taken) == [0, 1, 2]
    with pytest.raises(ValueError, match="1 blocks wanted, 0 free"):
        pool.take(1)
    pool.give(taken[:1])
    assert pool.take(1) == taken[:1]


def test_a_block_given_back_twice_is_an_error() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.give([block])
    with pytest.raises(ValueError, match="given back twice"):
        pool.give([block])


def test_tokens_fill_blocks_to_the_edge() -> None:
    kv = KVManager(4, 0, 16)
    kv.grow("a", 16)
    assert len(kv.table("a")) == 1
    assert kv.missing("a", 16) == 0
    assert kv.missing("a", 17) == 1
    kv.grow("a", 17)
    assert len(kv.table("a")) == 2
    with pytest.raises(ValueError, match="3 blocks wanted"):
        kv.grow("a", 80)
    kv.check()


def test_offloaded_blocks_are_free_only_when_their_copy_is_done() -> None:
    kv = KVManager(2, 2, 16)
    kv.grow("a", 32)
    transfer = kv.begin_offload("a")
    assert kv.where("a") is Where.OFFLOADING
    assert (kv.device.num_free, kv.incoming, kv.host.num_free) == (0, 2, 0)
    kv.finish(transfer)
    assert kv.where("a") is Where.HOST
    assert (kv.device.num_free, kv.incoming) == (2, 0)
    back = kv.begin_upload("a")
    assert kv.host.num_free == 0
    kv.finish(back)
    assert kv.where("a") is Where.DEVICE
    assert kv.host.num_free == 2
    kv.check()


@pytest.mark.parametrize("direction", ["offload", "upload"])
def test_release_in_the_middle_of_a_copy_frees_both_ends_when_it_is_done(direction: str) -> None:
    kv = KVManager(3, 3, 16)
    kv.grow("a", 48)
    transfer = kv.begin_offload("a")
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


def test_kv_that_is_not_at_rest_on_the_device_cannot_grow_or_leave() -> None:
    kv = KVManager(2, 2, 16)
    kv.grow("a", 16)
    kv.begin_offload("a")
    with pytest.raises(ValueError, match="offloading"):
        kv.grow("a", 32)
    with pytest.raises(ValueError, match="no KV on the device"):
        kv.begin_offload("a")
    with pytest.raises(ValueError, match="no KV on the host"):
        kv.begin_upload("a")


class Accounting(RuleBasedStateMachine):
    """Any order of growing, offloading, uploading, releasing and finishing late, in any order."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.kv = KVManager(num_device_blocks=12, num_host_blocks=7, block_size=8)
        self.flying: list[Transfer] = []

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
            with pytest.raises(ValueError, match=r"wanted|cannot grow"):
                self.kv.grow(request, tokens)
            assert self.kv.device.num_free == before

    @rule(request=requests)
    def offload(self, request: str) -> None:
        fits = self.kv.num_blocks(request) <= self.kv.host.num_free
        if self.kv.where(request) is Where.DEVICE and fits:
            self.flying.append(self.kv.begin_offload(request))
        else:
            with pytest.raises(ValueError, match=r"no KV|wanted"):
                self.kv.begin_offload(request)

    @rule(request=requests)
    def upload(self, request: str) -> None:
        fits = self.kv.num_blocks(request) <= self.kv.device.num_free
        if self.kv.where(request) is Where.HOST and fits:
            self.flying.append(self.kv.begin_upload(request))
        else:
            with pytest.raises(ValueError, match=r"no KV|wanted"):
                self.kv.begin_upload(request)

    @rule(request=requests)
    def release(self, request: str) -> None:
        self.kv.release(request)
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


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
