import dataclasses
import itertools
import math
from collections import Counter

import pytest

from fgbench.workload.arrivals import ClosedLoop, Gamma
from fgbench.workload.build import WARMUP_OUTPUT_TOKENS, build_workload, token_id_range
from fgbench.workload.datasets import Lengths, Synthetic, Texts
from fgbench.workload.lengths import Between
from fgbench.workload.texts import TextPair

TABLE = Lengths("table", tuple((i, 2 * i) for i in range(4, 104)))


def test_the_rate_only_scales_the_gaps():
    slow, fast = (build_workload(TABLE, rate=r, num_prompts=50, seed=7) for r in (0.5, 5.0))
    assert [r.prompt_tokens for r in slow.requests] == [r.prompt_tokens for r in fast.requests]
    assert [r.output_tokens for r in slow.requests] == [r.output_tokens for r in fast.requests]
    assert [r.scheduled / 10 for r in slow.requests] == pytest.approx(
        [r.scheduled for r in fast.requests], abs=1e-6
    )
    assert slow.prompts_fingerprint == fast.prompts_fingerprint
    assert slow.fingerprint != fast.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        {"rate": 5.0},
        {"rate": math.inf},
        {"arrivals": Gamma(2.0)},
        {"rate": math.inf, "arrivals": ClosedLoop(4)},
    ],
)
def test_no_load_begins_a_prompt_as_another_load_does(other):
    """Prefix caches work in blocks of a few tokens, so a block must not occur twice."""
    begun = {"rate": 0.5, "num_prompts": 100, "num_warmup": 10, "seed": 7}
    one, two = (build_workload(TABLE, **begun | change) for change in ({}, other))
    starts = [r.prompt[:4] for w in (one, two) for r in (*w.requests, *w.warmup)]
    assert len(set(starts)) == len(starts) == 220
    assert one.prompts_fingerprint == two.prompts_fingerprint  # so the runs are compared
    assert build_workload(TABLE, **begun) == one


def test_texts_are_sent_as_they_are_at_every_rate():
    pairs = [TextPair("", f"the words of prompt {i}", "an answer") for i in range(20)]
    texts = Texts("texts", pairs, lambda some: [len(text) for text in some], lambda n, m: True)
    slow, fast = (build_workload(texts, rate=r, num_prompts=20, seed=7) for r in (0.5, 5.0))
    assert [r.prompt for r in slow.requests] == [r.prompt for r in fast.requests]
    assert {r.prompt for r in slow.requests} == {pair.prompt for pair in pairs}


def without_times(requests):
    return tuple(dataclasses.replace(request, scheduled=0.0) for request in requests)


def test_fewer_prompts_give_the_first_requests_of_more():
    """Their times differ, because each load meets the rate exactly."""
    few, many = (build_workload(TABLE, rate=1.0, num_prompts=n, seed=7) for n in (20, 50))
    assert without_times(many.requests[:20]) == without_times(few.requests)


def test_the_seed_decides_the_workload():
    one, again, other = (build_workload(TABLE, rate=1.0, num_prompts=20, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one.fingerprint == again.fingerprint
    assert one.prompts_fingerprint != other.prompts_fingerprint


def test_without_prompts_only_the_fingerprint_differs():
    with_prompts, without = (
        build_workload(TABLE, rate=2.0, num_prompts=50, seed=7, with_prompts=make_prompts)
        for make_prompts in (True, False)
    )
    assert [(r.scheduled, r.prompt_tokens, r.output_tokens) for r in with_prompts.requests] == [
        (r.scheduled, r.prompt_tokens, r.output_tokens) for r in without.requests
    ]
    other = build_workload(TABLE, rate=2.0, num_prompts=50, seed=8, with_prompts=False)
    assert len({w.prompts_fingerprint for w in (with_prompts, without, other)}) == 3


def test_the_fingerprint_does_not_change_between_versions():
    """It identifies the workload of published runs."""
    workload = build_workload(TABLE, rate=2.0, num_prompts=5, seed=0)
    assert workload.fingerprint == "5dc4ca191babd099ef2496f05ba2c7af883113ac11df1660aa2a349695964558"


def test_samples_are_drawn_without_replacement_and_differ_from_warmup():
    workload = build_workload(TABLE, rate=1.0, num_prompts=90, num_warmup=10)
    measured = {(r.prompt_tokens) for r in workload.requests}
    warmup = {(r.prompt_tokens) for r in workload.warmup}
    assert len(measured) == 90
    assert measured | warmup == {p for p, _ in TABLE.pairs}
    assert all(r.output_tokens <= WARMUP_OUTPUT_TOKENS for r in workload.warmup)


def test_warmup_does_not_change_the_measured_requests():
    without, with_warmup = (build_workload(TABLE, rate=1.0, num_prompts=9, num_warmup=n) for n in (0, 5))
    assert without.requests == with_warmup.requests


def test_samples_repeat_if_there_are_more_prompts():
    workload = build_workload(TABLE, rate=1.0, num_prompts=250)
    lengths = [r.prompt_tokens for r in workload.requests]
    assert sorted(lengths[:100]) == sorted(lengths[100:200])
    assert len(set(lengths[200:])) == 50


def test_prompts_have_ids_in_range_and_the_given_length():
    for vocab in (None, 128_256, 512):
        low, high = token_id_range(vocab)
        workload = build_workload(
            Synthetic(Between(3, 9), Between(1, 2)), rate=1.0, num_prompts=40, vocab_size=vocab
        )
        for r in workload.requests:
            assert len(r.prompt) == r.prompt_tokens
            assert all(low <= t < high for t in r.prompt)
    assert token_id_range(512) == (128, 512)
    assert token_id_range(None) == token_id_range(50_272)
    with pytest.raises(ValueError, match="too small"):
        token_id_range(8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"num_prompts": 0}, "number of prompts"), ({"seed": -1}, "seed"), ({"num_warmup": -1}, "warm-up")],
)
def test_numbers_out_of_range_are_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_workload(TABLE, **{"rate": 1.0, "num_prompts": 3, **kwargs})


def test_describe_gives_json_even_at_an_infinite_rate():
    import json

    workload = build_workload(TABLE, rate=math.inf, num_prompts=3)
    described = json.loads(json.dumps(workload.describe(), allow_nan=False))
    assert described["rate"] == "inf"
    assert described["output_tokens"] == sum(r.output_tokens for r in workload.requests)


def test_arrival_times_are_ascending():
    workload = build_workload(TABLE, rate=1000.0, num_prompts=5000)
    assert all(a.scheduled <= b.scheduled for a, b in itertools.pairwise(workload.requests))


def test_users_are_drawn_with_weights_one_over_their_rank():
    workload = build_workload(TABLE, rate=1.0, num_prompts=11_000, users=3)
    counts = Counter(r.user for r in workload.requests)
    assert counts.keys() == {"user-1", "user-2", "user-3"}
    assert counts["user-1"] == pytest.approx(6000, rel=0.05)  # of 6 + 3 + 2
    assert counts["user-3"] == pytest.approx(2000, rel=0.05)
    assert workload.describe()["users"] == 3


def test_users_change_only_the_fingerprints():
    one, three = (build_workload(TABLE, rate=1.0, num_prompts=50, num_warmup=3, users=n) for n in (1, 3))
    assert {r.user for r in one.requests} == {""}
    assert tuple(dataclasses.replace(r, user="") for r in three.requests) == one.requests
    assert three.warmup == one.warmup
    assert three.fingerprint != one.fingerprint  # the user is sent too
    assert three.prompts_fingerprint != one.prompts_fingerprint
    few = build_workload(TABLE, rate=1.0, num_prompts=20, users=3)
    assert without_times(three.requests[:20]) == without_times(few.requests)
    with pytest.raises(ValueError, match="number of users must be between 1 and"):
        build_workload(TABLE, rate=1.0, num_prompts=3, users=0)
