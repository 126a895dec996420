"""Tests of dataset files: every format, recognized by its records, complete and damaged."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from fgbench.cli.datasets import histogram, look
from fgbench.workload import records
from fgbench.workload.datasets import Dataset, Lengths, Mix, Sample, Texts
from fgbench.workload.pulled import keep, saved_path
from fgbench.workload.reading import kind_of, load_dataset, parse_mix
from fgbench.workload.texts import alpaca_pairs, mmlu_pairs, plain_pairs

SHAREGPT = {
    "id": "s",
    "conversations": [{"from": "human", "value": "w " * 9}, {"from": "gpt", "value": "w " * 7}],
}
ALPACA = {"instruction": "w w w w", "input": "", "output": "w w w w w"}
OPENAI = {
    "messages": [
        {"role": "system", "content": "w w w"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "w " * 9}, {"type": "image_url", "image_url": {}}],
        },
        {"role": "assistant", "content": "w " * 7},
    ]
}
DOLLY = {"instruction": "w w", "context": "w w", "response": "w w w w w", "category": "closed_qa"}
LONGBENCH = {"input": "w w", "context": "w w w", "answers": ["w w", "w"], "length": 5}
MMLU = {"subject": "s", "question": "which one is it", "choices": ["p", "q"], "answer": "B"}
MINE = {"prompt": "w w", "output_tokens": 12}
COUNTS = {"input_length": 8, "output_length": 3}
MOONCAKE = {"timestamp": 0, **COUNTS, "hash_ids": []}
MMLU_PROMPT = "which one is it\nA. p\nB. q\nAnswer:"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty cache, and a tokenizer that makes one token per word."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def lines(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def load(folder: Path, name: str | None, path: Path | None, **options: Any) -> Dataset:
    return load_dataset(name, path=path, tokenizer=lambda: folder, **options)


def first(dataset: Dataset, count: int = 1) -> list[Sample]:
    return list(islice(dataset.samples(np.random.default_rng(0)), count))


@pytest.mark.parametrize("form", ["lines", "list", "gzip"])
@pytest.mark.parametrize(
    ("record", "kind", "sample"),
    [
        (SHAREGPT, "sharegpt", Sample(9, 7, "w " * 9)),
        (ALPACA, "alpaca", Sample(4, 5, "w w w w")),
        (MMLU, "mmlu", Sample(9, 1, MMLU_PROMPT)),
        (MINE, "jsonl", Sample(2, 12, "w w")),
        ({"prompt": "w w", "completion": "w"}, "jsonl", Sample(2, 1, "w w")),
        (OPENAI, "sharegpt", Sample(9, 7, "w " * 9)),
        (DOLLY, "dolly", Sample(4, 5, "w w\nw w")),
        (LONGBENCH, "longbench", Sample(5, 2, "w w w\n\nw w")),
        ({"prompt": "w w", "max_tokens": 3, "completion": "w"}, "jsonl", Sample(2, 3, "w w")),
        (COUNTS, "lengths", Sample(8, 3)),
        ({"prompt_tokens": 8, "output_tokens": 3}, "lengths", Sample(8, 3)),
        (MOONCAKE, "trace", Sample(8, 3)),
    ],
)
def test_each_format_is_recognized_by_its_records(
    folder: Path, form: str, record: dict[str, Any], kind: str, sample: Sample
) -> None:
    path = folder / "mine.data"
    text = json.dumps([record], indent=1) if form == "list" else json.dumps(record) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if form == "gzip" else text.encode())
    assert kind_of(path) == kind
    for name in (None, kind):
        assert first(load(folder, name, path)) == [sample]


def test_a_csv_is_a_trace_or_a_table(folder: Path) -> None:
    path = folder / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n")
    assert load(folder, None, path) == Lengths("t", ((374, 44),))
    path.write_text("prompt_tokens,output_tokens\n3,4\n")
    assert load(folder, None, path) == Lengths("t", ((3, 4),))


@pytest.mark.parametrize("text", ["a,b\n1,2\n", '{"answer": 42}\n', "[]", "", '["a", "b"]'])
def test_a_file_without_a_known_format_is_an_error(folder: Path, text: str) -> None:
    path = folder / "other"
    path.write_text(text)
    with pytest.raises(ValueError, match="has no known format"):
        load(folder, None, path)


@pytest.mark.parametrize(("record", "kind"), [(ALPACA, "alpaca"), (MMLU, "mmlu"), (MINE, "jsonl")])
def test_complete_records_are_used_and_the_others_counted(
    folder: Path, record: dict[str, Any], kind: str
) -> None:
    reported: list[str] = []
    path = folder / "mine.jsonl"
    text = json.dumps(record) + "\n"
    path.write_text(text * 2 + '{"oops"\n' + '{"another": "form"}\n' + text + text[:-9])
    assert len(first(load(folder, kind, path, report=reported.append), 3)) == 3
    assert reported[-1] == "mine.jsonl: 3 complete records; 3 records are broken or cut off and left out"


def test_files_whose_compression_is_cut_off(folder: Path) -> None:
    reported: list[str] = []
    numbers = np.random.default_rng(0).integers(1, 900, 4000).tolist()
    whole = "".join(json.dumps({"prompt": f"w {n}", "output_tokens": n}) + "\n" for n in numbers)
    rows = "prompt_tokens,output_tokens\n" + "".join(f"{n},{n}\n" for n in numbers)
    for text, name in ((whole, "cut.jsonl.gz"), (rows, "cut.csv.gz")):
        path = folder / name
        path.write_bytes(gzip.compress(text.encode())[:-2000])
        dataset = load(folder, None, path, report=reported.append)
        assert isinstance(dataset, (Texts, Lengths))
        assert 1000 < len(dataset.pairs) < 4000
        assert "the compressed file is damaged or cut off" in reported[-1]
    found = load(folder, None, folder / "cut.csv.gz")
    assert isinstance(found, Lengths)
    assert found.pairs == tuple((n, n) for n in numbers[: len(found.pairs)])


def test_a_number_at_the_end_of_cut_off_compression_is_not_used(folder: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    begun = packer.compress(b"prompt_tokens,output_tokens\n5,6\n7,12") + packer.flush(zlib.Z_SYNC_FLUSH)
    (folder / "cut.csv.gz").write_bytes(begun)
    assert load(folder, None, folder / "cut.csv.gz") == Lengths("cut", ((5, 6),))


@pytest.mark.slow
def test_records_before_damaged_compression_are_used(folder: Path) -> None:
    reported: list[str] = []
    numbers = np.random.default_rng(0).integers(1, 900, 400_000).tolist()
    data = bytearray(
        gzip.compress(("prompt_tokens,output_tokens\n" + "".join(f"{n},{n}\n" for n in numbers)).encode())
    )
    middle = len(data) // 2
    data[middle : middle + 50] = b"\xff" * 50
    (folder / "bad.csv.gz").write_bytes(data)
    dataset = load(folder, None, folder / "bad.csv.gz", report=reported.append)
    assert isinstance(dataset, Lengths)
    assert 1000 < len(dataset.pairs) < 400_000
    assert "damaged" in reported[-1]


def test_broken_rows_of_a_table_are_left_out_and_reported(folder: Path) -> None:
    reported: list[str] = []
    path = folder / "t.csv"
    path.write_bytes(b"prompt_tokens,output_tokens\n5,6\n7,x\n8\n0,6\n9999999,6\n\xff,1\n\n9,10,11\n")
    assert load(folder, None, path, report=reported.append) == Lengths("t", ((5, 6), (9, 10)))
    assert reported == ["t.csv: 2 complete records; 5 records are broken or cut off and left out"]


def test_the_prompt_of_alpaca_is_the_instruction_and_the_input() -> None:
    (pair,) = alpaca_pairs({"instruction": "Correct this", "input": "teh", "output": "the"})
    assert (pair.prompt, pair.completion) == ("Correct this\nteh", "the")
    assert alpaca_pairs({"instruction": "Hi", "output": "Hi"})[0].prompt == "Hi"


@pytest.mark.parametrize("answer", ["B", 1])
def test_the_prompt_of_mmlu_is_that_of_the_published_client(answer: Any) -> None:
    (pair,) = mmlu_pairs({**MMLU, "answer": answer})
    assert (pair.prompt, pair.completion) == (MMLU_PROMPT, "B")


@pytest.mark.parametrize(
    ("parse", "record", "message"),
    [
        (alpaca_pairs, [], "must be a JSON object"),
        (alpaca_pairs, {"instruction": 5, "output": "x"}, '"instruction" as a string'),
        (mmlu_pairs, {**MMLU, "choices": ["one"]}, '"choices" must be a list'),
        (mmlu_pairs, {**MMLU, "answer": "C"}, '"answer" must be one of AB'),
        (mmlu_pairs, {**MMLU, "answer": 2}, '"answer" must be one of AB'),
        (plain_pairs, {"prompt": ""}, '"prompt" must not be empty'),
        (plain_pairs, {"prompt": "x", "max_tokens": 0}, "a number of tokens must be an integer"),
        (plain_pairs, {"prompt": "x", "max_tokens": True}, "a number of tokens must be an integer"),
        (plain_pairs, {"prompt": "x", "max_tokens": "9"}, "a number of tokens must be an integer"),
    ],
)
def test_records_of_another_format_are_errors(parse: Any, record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(record)


def test_prompts_without_an_answer_length_need_output_len(folder: Path) -> None:
    path = lines(folder / "mine.jsonl", [MINE, {"prompt": "x y z"}])
    with pytest.raises(ValueError, match="has records without the length of the answer"):
        load(folder, None, path)
    samples = first(load(folder, None, path, output_len="3-5"), 2)
    assert {s.prompt_tokens: s.output_tokens in (3, 4, 5) for s in samples} == {2: False, 3: True}
    mmlu = load(folder, None, lines(folder / "m.jsonl", [MMLU]), output_len="64")
    assert first(mmlu)[0].output_tokens == 64


def test_only_your_own_prompts_may_have_any_length(folder: Path) -> None:
    long = {"prompt": "w " * 3000, "completion": "w"}
    assert first(load(folder, None, lines(folder / "a.jsonl", [long])))[0].prompt_tokens == 3000
    with pytest.raises(ValueError, match="no conversation has an accepted length"):
        first(load(folder, "sharegpt", folder / "a.jsonl"))


def test_the_folder_of_mmlu_is_read(folder: Path) -> None:
    (folder / "data" / "test").mkdir(parents=True)
    (folder / "data" / "test" / "law_test.csv").write_text('"which one\nis it",p,q,B\n\n')
    (folder / "data" / "test" / "art_test.csv").write_text("why,p,q,r,s,D\n")
    dataset = load(folder, None, folder / "data")
    assert {s.text for s in first(dataset, 2)} == {
        "which one\nis it\nA. p\nB. q\nAnswer:",
        "why\nA. p\nB. q\nC. r\nD. s\nAnswer:",
    }
    assert keep("mmlu", folder / "data").tally.complete == 2
    assert len(first(load(folder, "mmlu", None), 2)) == 2
    with pytest.raises(ValueError, match="is a folder, but not MMLU's"):
        load(folder, None, folder)


def test_a_saved_dataset_is_found_by_name_and_replaced(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"alpaca is not on this machine: get alpaca_data\.json"):
        load(folder, "alpaca", None)
    with pytest.raises(ValueError, match='"instruction" as a string'):
        keep("alpaca", lines(folder / "wrong.json", [MMLU]))
    assert saved_path("alpaca") is None
    keep("alpaca", lines(folder / "one.jsonl", [ALPACA]))
    assert first(load(folder, "alpaca", None))[0].output_tokens == 5
    keep("alpaca", lines(folder / "two.jsonl", [{**ALPACA, "output": "w"}]))
    assert first(load(folder, "alpaca", None))[0].output_tokens == 1
    path = saved_path("alpaca")
    assert path is not None
    assert path.name == "two.jsonl"


# mixes


def test_the_shares_of_a_mix_are_exact_in_every_block(folder: Path) -> None:
    a, b = lines(folder / "a.jsonl", [COUNTS]), lines(folder / "b.jsonl", [ALPACA])
    mix = load(folder, "mix", None, mix=f"{a}:1,{b}:39")
    assert isinstance(mix, Mix)
    assert mix.name == "mix-a-0.025-alpaca-0.975"
    samples = first(mix, 600)
    for start in (0, 200, 400):
        assert sum(s.text is None for s in samples[start : start + 200]) == 5
    assert samples == first(mix, 600)
    assert samples[:50] == first(mix, 50)
    assert [s.text is None for s in samples[:200]] != [s.text is None for s in samples[200:400]]


def test_the_mix_of_the_artifact_is_sharegpt_and_mmlu(folder: Path) -> None:
    with pytest.raises(ValueError, match="mmlu is not on this machine"):
        load(folder, "mix", None, mix="mmlu:1")
    from fgbench.workload.reading import ARTIFACT_MIX

    assert parse_mix(ARTIFACT_MIX) == [("sharegpt", 0.025), ("mmlu", 0.975)]


def test_shares_are_rounded_to_fill_a_block() -> None:
    part = Lengths("x", ((1, 1),))
    assert Mix(tuple((part, 1 / 3) for _ in range(3))).counts() == [67, 67, 66]
    assert Mix(((part, 0.025), (part, 0.975))).counts() == [5, 195]


@pytest.mark.parametrize("text", ["", "sharegpt", "a:0", "a:x", "a:1,,b:1", "a:-1", "a:nan", ":1"])
def test_a_malformed_mix_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list of datasets and shares"):
        parse_mix(text)


# figures of a dataset


def test_figures_count_used_and_left_out_records(folder: Path) -> None:
    short = {**SHAREGPT, "conversations": [{"from": "human", "value": "w"}, {"from": "gpt", "value": "w"}]}
    found = look(load(folder, None, lines(folder / "s.jsonl", [SHAREGPT] * 6 + [short] * 2)), 100)
    assert (found.records, found.looked_at, found.too_long_or_short) == (8, 8, 2)
    assert found.prompts == (9,) * 6
    sampled = look(load(folder, None, folder / "s.jsonl"), 5)
    assert (sampled.records, sampled.looked_at) == (8, 5)
    assert len(sampled.outputs) == 5 - sampled.too_long_or_short
    endless = look(load(folder, "synthetic", None), 50)
    assert (endless.records, endless.looked_at, endless.too_long_or_short) == (None, 50, 0)
    assert endless.to_dict()["prompt_tokens"]["p50"] == 512


def test_each_bin_of_the_histogram_is_twice_as_wide() -> None:
    assert histogram([1, 2, 3, 4, 7, 8, 1000]) == [1, 2, 2, 1, 0, 0, 0, 0, 0, 1]
    assert histogram([]) == []


def test_prompts_in_a_table_or_a_text_file(folder: Path) -> None:
    table = folder / "mine.csv"
    table.write_text('id,prompt,output_tokens_count\n1,"w w,\nw",7\n2,w,3\n')
    assert kind_of(table) == "jsonl"
    found = {sample.output_tokens: sample for sample in first(load(folder, None, table), 2)}
    assert found == {7: Sample(3, 7, "w w,\nw"), 3: Sample(1, 3, "w")}
    text = folder / "mine.txt"
    text.write_text("w w w\n\nw w w\n")
    assert first(load(folder, None, text, output_len="5")) == [Sample(3, 5, "w w w")]
    with pytest.raises(ValueError, match="records without the length of the answer"):
        load(folder, None, text)


@pytest.mark.parametrize("piece", [1, 5, 1024])
def test_a_table_of_prompts_that_is_cut_off_keeps_its_complete_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(records, "_PIECE_BYTES", piece)
    table = folder / "mine.csv"
    table.write_text('prompt,output_tokens\n"w w",7\n"w\nw",3\n"cut')
    lines: list[str] = []
    dataset = load(folder, None, table, report=lines.append)
    assert {sample.output_tokens for sample in first(dataset, 2)} == {7, 3}
    assert any("1 record is broken or cut off and left out" in line for line in lines)


def test_one_malformed_conversation_costs_only_itself(folder: Path) -> None:
    lines_of: list[str] = []
    path = lines(folder / "mine.jsonl", [OPENAI, {"messages": [{"role": "user"}]}, {"messages": 3}, OPENAI])
    dataset = load(folder, None, path, report=lines_of.append)
    assert first(dataset) == [Sample(9, 7, "w " * 9)]
    assert any("2 records are broken" in line for line in lines_of)


def test_a_damaged_row_of_a_table_costs_only_itself(folder: Path) -> None:
    table, said = folder / "mine.csv", []
    rows = "".join(f'"w w",{i + 2}\n' for i in range(100))
    table.write_text(f'prompt,output_tokens\n"He said "hi" to me",5\n{rows}')
    dataset = load(folder, None, table, report=said.append)
    assert {sample.output_tokens for sample in first(dataset, 100)} == set(range(2, 102))
    assert any("1 record is broken" in line for line in said)


def test_only_line_feeds_end_a_row(folder: Path) -> None:
    table = folder / "mine.csv"
    table.write_text("prompt,output_tokens\nw\u2028w\x0cw,5\n", encoding="utf-8")
    assert first(load(folder, None, table)) == [Sample(3, 5, "w\u2028w\x0cw")]


def test_numbers_in_a_table_may_be_texts(folder: Path) -> None:
    table = folder / "mine.csv"
    table.write_text("prompt,answer\n123,42 43\n")
    assert first(load(folder, None, table)) == [Sample(1, 2, "123")]


@pytest.mark.parametrize("content", [None, ["hi"], [{"text": "hi"}], 3])
def test_messages_without_a_text_are_no_answer(folder: Path, content: Any) -> None:
    messages = [{"role": "user", "content": "w"}, {"role": "assistant", "content": content}]
    path = lines(folder / "mine.jsonl", [{"messages": messages}, OPENAI])
    assert first(load(folder, None, path), 2) == [Sample(9, 7, "w " * 9)] * 2
