import gzip
from itertools import islice

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from fgbench.workload.datasets import Lengths, Texts, token_counter
from fgbench.workload.reading import load_dataset, read_lengths
from fgbench.workload.texts import TextPair, length_ok


def count_words(texts):
    return [len(t.split()) for t in texts]


def test_tables_are_read_with_and_without_compression(tmp_path):
    text = "prompt_tokens,output_tokens\n5,6\n7,8\n"
    (tmp_path / "a.csv").write_text(text)
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        file.write(text)
    for name in ("a.csv", "b.csv.gz"):
        assert read_lengths(tmp_path / name, "t") == Lengths("t", ((5, 6), (7, 8)))
    assert load_dataset("sharegpt-lengths", path=tmp_path / "b.csv.gz").name == "b"


def test_the_tables_of_lengths_hold_what_their_description_says():
    own, published = load_dataset("sharegpt-lengths"), load_dataset("sharegpt-artifact-lengths")
    assert (len(own.pairs), len(published.pairs)) == (15_350, 15_182)
    assert all(length_ok(*pair) for pair in published.pairs)
    prompts, outputs = np.array(published.pairs).T
    assert round(prompts.mean(), 1) == 226.2
    assert round(outputs.mean(), 1) == 228.8
    assert np.percentile(outputs, 25) == 28
    assert np.percentile(np.array(own.pairs).T[1], 25) == 161


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "columns"),
        ("prompt_tokens,output_tokens\n", "no rows"),
        ("prompt_tokens,output_tokens\n5\n", "no rows"),
        ("prompt_tokens,output_tokens\n0,6\n", "no rows"),
    ],
)
def test_wrong_tables_are_errors(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_lengths(path, "t")


def test_texts_with_accepted_lengths_are_sampled_unchanged():
    pairs = [
        TextPair("short", "a b c", "w " * 50),
        TextPair("fits", "a b c d", "w " * 10),
        TextPair("long", "w " * 1025, "w " * 10),
        TextPair("fits too", "e f g h i", "w " * 4),
    ]
    samples = list(islice(Texts("t", pairs, count_words, length_ok).samples(np.random.default_rng(0)), 4))
    assert {(s.text, s.prompt_tokens, s.output_tokens) for s in samples[:2]} == {
        ("a b c d", 4, 10),
        ("e f g h i", 5, 4),
    }
    assert sorted(s.prompt_tokens for s in samples[2:]) == [4, 5]  # the second round


def test_texts_without_an_accepted_length_are_an_error():
    dataset = Texts("t", [TextPair("", "a", "b")], count_words, length_ok)
    with pytest.raises(ValueError, match="no conversation"):
        next(dataset.samples(np.random.default_rng(0)))


def test_sharegpt_from_a_file_with_a_tokenizer(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"w": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    data = tmp_path / "d.jsonl"
    data.write_text('{"id": "1", "prompt": "w x y z", "completion": "w w w w w"}\n')
    dataset = load_dataset("sharegpt", path=data, tokenizer=lambda: tmp_path)
    sample = next(dataset.samples(np.random.default_rng(0)))
    assert (sample.text, sample.prompt_tokens, sample.output_tokens) == ("w x y z", 4, 5)


def test_a_dataset_that_cannot_be_loaded_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="there is no dataset or file 'nope'"):
        load_dataset("nope")
    with pytest.raises(ValueError, match="no file"):
        load_dataset("sharegpt", path=tmp_path / "absent")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        token_counter(tmp_path)
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(ValueError, match="reads no file"):
        load_dataset("synthetic", path=tmp_path / "x.csv")
