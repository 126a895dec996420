"""Tests of the syntax of lengths, and of the distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fgbench.workload.datasets import Synthetic
from fgbench.workload.lengths import Between, LengthDistribution, Lognormal, Zipf, parse_lengths


def drawn(text: str, count: int = 20_000, seed: int = 1) -> np.ndarray:
    distribution, rng = parse_lengths(text), np.random.default_rng(seed)
    return np.array([distribution.draw(rng) for _ in range(count)])


@pytest.mark.parametrize(
    ("text", "distribution", "name"),
    [
        ("128", Between(128, 128), "128"),
        ("16-512", Between(16, 512), "16-512"),
        ("lognormal:256:1.0", Lognormal(256, 1.0), "lognormal.256.1"),
        ("lognormal:256:0.5:2048", Lognormal(256, 0.5, 2048), "lognormal.256.0.5.2048"),
        ("zipf:1.2:2048", Zipf(1.2, 2048), "zipf.1.2.2048"),
    ],
)
def test_valid_lengths_are_parsed(text: str, distribution: LengthDistribution, name: str) -> None:
    assert parse_lengths(text) == distribution
    assert distribution.name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[
            (bad, "is not a length: write 512")
            for bad in ("", "x", "-4", "1-2-3", "1.5", "normal:1:1", "zipf:1.2", "٣")
        ],
        *[
            (bad, "is not a length: write 512")
            for bad in ("zipf:1.2:x", "lognormal:256", "lognormal:1:1:1:1", "5:5")
        ],
        ("5-3", "must be ordered"),
        ("0", "must be ordered and between 1"),
        ("9999999", "must be ordered and between 1"),
        ("lognormal:0:1", "the median"),
        ("lognormal:nan:1", "the median"),
        ("lognormal:5:0", "sigma of lognormal"),
        ("lognormal:5:1:0", "the longest length"),
        ("zipf:0:10", "the exponent of zipf"),
        ("zipf:1:9999999", "the longest length"),
    ],
)
def test_invalid_lengths_are_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_lengths(text)


def test_uniform_lengths_are_equally_likely() -> None:
    values, counts = np.unique(drawn("3-12"), return_counts=True)
    assert values.tolist() == list(range(3, 13))
    assert stats.chisquare(counts).pvalue > 0.01


def test_lognormal_lengths_have_their_median_and_sigma() -> None:
    found = drawn("lognormal:500:0.7")
    assert np.median(found) == pytest.approx(500, rel=0.03)
    assert stats.kstest(np.log(found), "norm", args=(np.log(500), 0.7)).pvalue > 0.01
    cut = drawn("lognormal:500:0.7:600")
    assert cut.max() == 600
    assert (cut == 600).mean() == pytest.approx(stats.norm.sf(np.log(599.5 / 500) / 0.7), abs=0.02)
    assert drawn("lognormal:1:5", 2000).min() == 1


def test_zipf_lengths_follow_the_exponent() -> None:
    found = drawn("zipf:1.2:50")
    expected = np.arange(1, 51) ** -1.2
    observed = np.bincount(found, minlength=51)[1:]
    assert stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > 0.01


def test_the_name_of_synthetic_has_both_distributions() -> None:
    dataset = Synthetic(Between(2, 4), Zipf(1.0, 9))
    samples = [s for s, _ in zip(dataset.samples(np.random.default_rng(0)), range(100), strict=False)]
    assert {s.prompt_tokens for s in samples} == {2, 3, 4}
    assert {s.output_tokens for s in samples} <= set(range(1, 10))
    assert dataset.name == "synthetic-2-4xzipf.1.9"
