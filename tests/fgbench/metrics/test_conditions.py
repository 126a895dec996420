"""The account of a prefix cache: which hits mark a run."""

from __future__ import annotations

import pytest

from fgbench.metrics.conditions import CacheAccount, Conditions, cache_account, shared_share


def account(
    hits: float, looked_up: float, preemptions: float = 0.0, tokens: int = 1000, shared: float = 0.0
) -> CacheAccount:
    before = {"hits": 50.0, "looked_up": 100.0, "preemptions": 3.0}
    after = {"hits": 50.0 + hits, "looked_up": 100.0 + looked_up, "preemptions": 3.0 + preemptions}
    return cache_account(
        reset=False,
        reset_answer="",
        prompt_tokens=tokens,
        shared_share=shared,
        counters=(before, after),
    )


def test_more_than_one_percent_of_unexpected_hits_mark_a_run() -> None:
    assert account(20.0, 1000.0).hit_share == pytest.approx(0.02)
    assert account(20.0, 1000.0).helped
    assert not account(9.0, 1000.0).helped
    assert not account(200.0, 1000.0, shared=0.195).helped
    assert account(0.0, 0.0).hit_share == 0.0  # the cache is off


def test_what_preempted_requests_find_of_their_own_does_not_count() -> None:
    assert not account(400.0, 1400.0, preemptions=5.0).helped
    assert account(900.0, 1400.0, preemptions=5.0).hit_share == pytest.approx(0.5)
    assert account(700.0, 1400.0).hit_share == pytest.approx(0.5)
    assert account(30.0, 60.0, preemptions=5.0).hit_share == pytest.approx(0.5)  # blocks, in an older vLLM


def test_usage_wins_over_counters_and_without_both_nothing_is_known() -> None:
    counters = ({"hits": 0.0, "looked_up": 0.0, "preemptions": 0.0},) * 2
    both = cache_account(
        reset=True, reset_answer="", prompt_tokens=100, shared_share=0.0, cached_tokens=50, counters=counters
    )
    assert (both.counted_by, both.hit_share, both.helped) == ("usage", 0.5, True)
    neither = cache_account(reset=True, reset_answer="", prompt_tokens=100, shared_share=0.0)
    assert (neither.counted_by, neither.hit_share, neither.helped) == (None, None, False)


def test_a_server_that_was_restarted_has_no_negative_hits() -> None:
    counters = (
        {"hits": 90.0, "looked_up": 100.0, "preemptions": 0.0},
        {"hits": 0.0, "looked_up": 50.0, "preemptions": 0.0},
    )
    found = cache_account(reset=False, reset_answer="", prompt_tokens=50, shared_share=0.0, counters=counters)
    assert found.hit_share == 0.0


def test_the_shared_share_is_what_a_cache_without_limits_finds() -> None:
    assert shared_share(["abcd", "abXY", "abXZ"]) == pytest.approx((2 + 3) / 12)
    assert shared_share(["abcd"] * 4) == pytest.approx(12 / 16)
    assert shared_share([(1, 2, 3), (1, 2, 4), (5, 6, 7)]) == pytest.approx(2 / 9)
    assert shared_share(["ab", (1, 2), "ab"]) == pytest.approx(2 / 6)
    assert shared_share([]) == shared_share([(), ()]) == 0.0


def test_accounts_survive_json() -> None:
    cache = account(20.0, 1000.0)
    assert CacheAccount.of({"prefix_cache": cache.to_json()}) == cache
    assert CacheAccount.of({}) is None
    conditions = Conditions(1, 2, 3, 4, 5, (0, 1))
    assert Conditions.of({"conditions": conditions.to_json()}) == conditions
    assert Conditions.of({"conditions": {"texts": 1}}) is None
    with pytest.raises(ValueError, match="str"):
        CacheAccount.of({"prefix_cache": cache.to_json() | {"hits": "many"}})


def test_an_account_is_described_in_words() -> None:
    assert account(20.0, 1000.0).describe() == "2.0% of the prompt tokens found; not reset before the load"
