"""Predictors of output lengths: the expected remainder, random errors, learning and storing."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from statistics import fmean, median, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from fgengine.cost import CostModel
from fgengine.request import FinishReason, Request, SamplingParams
from fgengine.scheduling import learned
from fgengine.scheduling.learned import Learned, open_predictor, predictor_path
from fgengine.scheduling.policy import PolicyContext, make_policy
from fgengine.scheduling.predictor import Noisy, Oracle, Prediction
from fgengine.scheduling.predictors import make_predictor

MARK = 7
"""A token that appears in the prompts with long answers."""


def make(id: str, max_tokens: int = 100) -> Request:
    return Request.new(id, [1, 2, 3], SamplingParams(max_tokens=max_tokens), 0.0)


def lesson(num: int, seed: int) -> list[tuple[list[int], int]]:
    """Return (prompt, length) pairs: half contain ``MARK`` (about 500 tokens), half do not (about 25)."""
    rng = random.Random(seed)
    examples = []
    for number in range(num):
        prompt = [rng.randrange(100, 112) for _ in range(rng.randrange(5, 40))]
        if number % 2:
            prompt[rng.randrange(len(prompt))] = MARK
        examples.append((prompt, rng.randrange(400, 600) if number % 2 else rng.randrange(20, 30)))
    return examples


def teach(predictor: Learned, examples: list[tuple[list[int], int]]) -> Learned:
    for prompt, length in examples:
        predictor.learn_length(prompt, length)
    predictor.flush()
    return predictor


# -- the remainder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.5])
@pytest.mark.parametrize("generated", [0, 1, 50, 100, 400, 1000])
def test_remaining_is_the_mean_residual_life(sigma: float, generated: int) -> None:
    """The expected value is the integral of the survival function, divided by its value at ``generated``."""
    lengths = stats.lognorm(s=sigma, scale=100.0)
    scale = lengths.sf(generated)
    expected, _ = integrate.quad(
        lambda x: lengths.sf(generated + x) / scale, 0.0, np.inf, limit=500, epsabs=1e-9, epsrel=1e-9
    )
    assert Prediction(100.0, sigma).remaining(generated) == pytest.approx(max(1.0, expected), rel=1e-4)


def test_a_known_length_is_counted_down_to_one() -> None:
    assert [Prediction(10.0, 0.0).remaining(g) for g in (0, 4, 9, 10, 50)] == [10.0, 6.0, 1.0, 1.0, 1.0]


@given(st.floats(1.0, 1e5), st.floats(1e-3, 10.0), st.integers(0, 2**20), st.integers(0, 2**20))
def test_remaining_is_finite_and_at_least_one_far_in_the_tail(
    length: float, sigma: float, one: int, other: int
) -> None:
    left = [Prediction(length, sigma).remaining(generated) for generated in sorted((one, other))]
    assert all(math.isfinite(tokens) and tokens >= 1.0 for tokens in left)


def test_the_two_formulas_agree_where_they_meet() -> None:
    """The formula changes at z = 25."""
    prediction = Prediction(10.0, 0.4)
    border = 10.0 * math.exp(25.0 * 0.4)
    before, after = prediction.remaining(math.floor(border)), prediction.remaining(math.ceil(border) + 1)
    assert after == pytest.approx(before, rel=0.01)


def test_remaining_grows_for_an_answer_longer_than_predicted() -> None:
    uncertain = Prediction(100.0, 0.7)
    left = [uncertain.remaining(generated) for generated in (200, 400, 800, 1600, 3200)]
    assert left == sorted(left)
    certain = Prediction(100.0, 0.1)
    assert certain.remaining(200) < uncertain.remaining(200)


# -- oracle and noise --------------------------------------------------------------------------------------


def test_the_oracle_predicts_max_tokens() -> None:
    assert Oracle().predict(make("a", 77)) == Prediction(77.0, 0.0)


def test_the_noise_depends_on_the_request_id_and_is_lognormal() -> None:
    noisy, again = Noisy(0.5), Noisy(0.5)
    requests = [make(f"request {number}", 1000) for number in range(4000)]
    predictions = [noisy.predict(request) for request in requests]
    assert predictions == [again.predict(request) for request in reversed(requests)][::-1]
    assert {prediction.sigma for prediction in predictions} == {0.5}
    errors = [math.log(prediction.median / 1000) for prediction in predictions]
    assert fmean(errors) == pytest.approx(0.0, abs=0.03)
    assert pstdev(errors) == pytest.approx(0.5, rel=0.05)
    assert stats.kstest(errors, "norm", args=(0.0, 0.5)).pvalue > 1e-3
    assert Noisy(10.0).predict(make("tiny", 1)).median >= 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("psychic", "there is no predictor 'psychic'; there are oracle, noisy:SIGMA, learned, or package"),
        ("oracle:1", "there is no predictor"),
        ("noisy", "there is no predictor"),
        ("noisy:", "takes a number"),
        ("noisy:much", "takes a number, such as noisy:0.5, not 'much'"),
        ("noisy:-1", "between 0 and 10"),
        ("noisy:11", "between 0 and 10"),
        ("noisy:nan", "between 0 and 10"),
        ("noisy:inf", "between 0 and 10"),
        ("no.such.module:Class", "could not be loaded from no.such.module:Class: No module named 'no'"),
        ("collections:OrderedDict", "is not a class with the methods predict, learn, close"),
        ("math:sqrt", "is not a class with the methods"),
    ],
)
def test_an_unknown_or_unusable_predictor_raises(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_predictor(name, "tiny")


class Constant(Oracle):
    def predict(self, request: Request) -> Prediction:
        return Prediction(42.0, 0.0)


class Refuses(Oracle):
    def __init__(self) -> None:
        raise OSError("no network")


def test_a_custom_predictor_is_named_by_its_class() -> None:
    made = make_predictor(f"{__name__}:Constant", "tiny")
    assert made.predict(make("tiny", 7)) == Prediction(42.0, 0.0)
    with pytest.raises(ValueError, match=r"its __init__\(\) raised OSError: no network"):
        make_predictor(f"{__name__}:Refuses", "tiny")


# -- learning ----------------------------------------------------------------------------------------------


def test_it_learns_which_prompts_have_long_answers() -> None:
    predictor = Learned("tiny")
    prompts = lesson(200, seed=2)
    assert predictor.predict_length(prompts[0][0]).median == pytest.approx(245, rel=0.01)
    teach(predictor, lesson(2000, seed=1))
    short = [predictor.predict_length(prompt).median for prompt, length in prompts if length < 100]
    long = [predictor.predict_length(prompt).median for prompt, length in prompts if length >= 100]
    ordered = sum(a < b for a in short for b in long) / (len(short) * len(long))
    assert ordered > 0.95
    assert median(long) > 1.5 * median(short)  # less than the true ratio, because it learns in small steps
    errors = [abs(math.log(predictor.predict_length(p).median / length)) for p, length in prompts]
    assert predictor.sigma == pytest.approx(fmean(errors) * math.sqrt(math.pi / 2), rel=0.2)


def test_learning_is_deterministic() -> None:
    """Simulations must be repeatable."""
    one, other = (teach(Learned("tiny"), lesson(200, seed=1)) for _ in range(2))
    for prompt, _ in lesson(20, seed=2):
        assert one.predict_length(prompt) == other.predict_length(prompt)


def test_it_predicts_from_the_prompt_not_from_the_answer() -> None:
    predictor = teach(Learned("tiny"), lesson(200, seed=1))
    request = make("a")
    first = predictor.predict(request)
    request.tokens.extend([MARK] * 50)
    assert predictor.predict(request) == first


def test_a_stored_predictor_continues_to_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    predictor = make_predictor("learned", "tiny")
    assert isinstance(predictor, Learned)
    examples, prompts = lesson(150, seed=1), [prompt for prompt, _ in lesson(30, seed=2)]
    for prompt, length in examples[:100]:
        predictor.learn_length(prompt, length)  # fewer than SAVE_EVERY; some are still pending
    assert not predictor_path("tiny").exists()
    predictor.close()
    assert [path.name for path in predictor_path("tiny").parent.iterdir()] == ["tiny.npz"]
    again = open_predictor("tiny")
    assert again.num_learned == 100
    predicted = [predictor.predict_length(prompt) for prompt in prompts]
    for prompt, before in zip(prompts, predicted, strict=True):
        after = again.predict_length(prompt)
        assert after.median == pytest.approx(before.median, rel=1e-5)  # weights are stored as float32
        assert after.sigma == before.sigma
    teach(again, examples[100:])
    again.close()
    last = open_predictor("tiny")
    assert last.num_learned == 150
    assert [last.predict_length(prompt) for prompt in prompts] != predicted


def test_it_saves_periodically_unless_keep_is_false(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    unsaved = make_predictor("learned", "tiny", keep=False)
    assert isinstance(unsaved, Learned)
    teach(unsaved, lesson(learned.SAVE_EVERY + learned.LEARN_BATCH, seed=1)).close()
    assert list(tmp_path.rglob("*")) == []
    teach(open_predictor("tiny"), lesson(learned.SAVE_EVERY + learned.LEARN_BATCH, seed=1))
    assert open_predictor("tiny").num_learned >= learned.SAVE_EVERY


def stored(folder: Path) -> Path:
    path = folder / "stored.npz"
    teach(Learned("tiny", path), lesson(64, seed=1)).save()
    return path


def rewrite(path: Path, **changes: object) -> None:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez_compressed(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": np.int64(99)}, "not of version 2"),
        ({"model": np.str_("other")}, "learned with the tokens of other, not of tiny"),
        ({"weights": np.zeros(8, np.float32)}, "wrong sizes"),
        ({"seen_in": np.zeros((2, 2), np.int32)}, "wrong sizes"),
        ({"weights": np.full(1 << learned.BITS, np.nan, np.float32)}, "are out of range"),
        ({"intercept": np.array([np.nan])}, "are out of range"),
        ({"sigma": np.float64(-1.0)}, "are out of range"),
        ({"sigma": np.float64(99.0)}, "are out of range"),
        ({"num_learned": np.int64(-5)}, "are out of range"),
        ({"seen_in": None}, "'seen_in' is missing"),
        ({"sigma": np.array(["a", "b"])}, "not a usable predictor"),
    ],
)
@pytest.mark.slow
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = stored(tmp_path)
    Learned.load(path, "tiny")
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        Learned.load(path, "tiny")
    assert str(path) in str(error.value)
    assert "fgbench predictor train" in str(error.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path)
    whole = path.read_bytes()
    lone = tmp_path / "lone.npy"
    np.save(lone, np.zeros(3))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (
        b"",
        b"not a predictor",
        whole[: len(whole) // 2],
        whole[:-1],
        bytes(flipped),
        lone.read_bytes(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is not a usable predictor"):
            Learned.load(path, "tiny")


class Bomb:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "exploded")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path, crater = stored(tmp_path), tmp_path / "crater"
    rewrite(path, sigma=np.array([Bomb(crater)], dtype=object))
    with pytest.raises(ValueError, match="not a usable predictor"):
        Learned.load(path, "tiny")
    assert not crater.exists()
    with np.load(path, allow_pickle=True) as file:
        file["sigma"]
    assert crater.exists()  # the pickle does write the file when it is loaded


def test_make_predictor_reports_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    path = predictor_path("tiny")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is not a usable predictor"):
        make_predictor("learned", "tiny")


def test_a_prediction_is_fast() -> None:
    predictor = teach(Learned("tiny"), lesson(64, seed=1))
    rng = random.Random(3)
    prompt = [rng.randrange(49_152) for _ in range(1000)]
    times = []
    for _ in range(50):
        began = time.perf_counter()
        predictor.predict_length(prompt)
        times.append(time.perf_counter() - began)
    assert median(times) < 0.005  # about 0.1 ms, with a margin for busy machines


def test_the_shortest_prompts_and_lengths_can_be_learned() -> None:
    predictor = Learned("tiny")
    teach(predictor, [([1], 0), ([1], 1), ([1, 2], 1)] * 40)
    assert 1.0 <= predictor.predict_length([1]).median < 245
    assert predictor.predict_length(bytearray(5000)).median >= 1.0


# -- what it learns from
# -------------------------------------------------------------------------------------------


class Recorder(Oracle):
    """An oracle that records what it should learn from."""

    def __init__(self) -> None:
        self.learned: list[tuple[str, int]] = []

    def learn(self, request: Request) -> None:
        self.learned.append((request.id, request.num_generated))


@pytest.mark.parametrize("policy", ["sjf", "sprpt"])
@pytest.mark.parametrize(
    ("reason", "teaches"), [("stop", True), ("length", True), ("abort", False), ("error", False)]
)
def test_the_predictor_learns_only_from_answers_that_ended_normally(
    policy: str, reason: FinishReason, teaches: bool
) -> None:
    recorder = Recorder()
    tested = make_policy(policy, PolicyContext(CostModel(step=0.01), predictor=recorder))
    request = make("a")
    tested.add(request, 0.0)
    request.num_computed = request.num_known
    request.tokens.append(0)
    tested.on_step(request, 0.01, 0.01)
    request.finish(reason, 0.02)
    tested.remove(request)
    assert recorder.learned == ([("a", 1)] if teaches else [])
