"""Tests of reading traces: published formats, and damaged files."""

from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fgbench.cli.datasets import timing
from fgbench.workload.trace import parse_columns, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-17 00:00:00,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 02:00:01.017335+02:00,2399,6
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,API log
118.5,GPT-4,417,276,693,Conversation log
"""
BURST_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ab-cd,1.5,ChatGPT,472,18,490,Conversation log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 3052, "input_length": 7319, "output_length": 490, "hash_ids": [0, 14]}
"""
PLAIN = "timestamp,prompt_tokens,output_tokens\n1.5,10,20\n0.5,30,40\n"


def write(folder: Path, text: str, name: str = "some.trace.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["some.csv", "some.csv.gz"])
@pytest.mark.parametrize(
    ("text", "form", "times", "pairs"),
    [
        (AZURE, "azure", (0.0, 4.314579, 20653.31941), ((374, 44), (396, 109), (879, 55))),
        (AZURE_2024, "azure", (0.0, 1.007405), ((2162, 5), (2399, 6))),
        (BURST, "burstgpt", (0.0, 113.5), ((472, 18), (417, 276))),
        (BURST_3, "burstgpt", (0.0,), ((472, 18),)),
        (MOONCAKE, "mooncake", (0.0, 3.052), ((6755, 500), (7319, 490))),
        (PLAIN, "plain", (0.0, 1.0), ((30, 40), (10, 20))),
        ("\ufeff" + PLAIN.replace("\n", "\r\n"), "plain", (0.0, 1.0), ((30, 40), (10, 20))),
    ],
)
def test_each_format_is_read(
    tmp_path: Path, name: str, text: str, form: str, times: tuple[float, ...], pairs: tuple[object, ...]
) -> None:
    trace = read_trace(write(tmp_path, text, name))
    assert (trace.name, trace.format, trace.pairs) == ("some", form, pairs)
    assert trace.times == pytest.approx(times, abs=2e-6)


def test_failed_requests_are_left_out_and_reported(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, BURST))
    assert trace.tokenless == 1
    assert trace.tally.complete == 3
    (note,) = trace.notes
    assert "1 requests without prompt or output tokens" in note


def test_a_limit_reads_the_first_requests(tmp_path: Path) -> None:
    assert len(read_trace(write(tmp_path, AZURE), limit=2).times) == 2
    assert read_trace(write(tmp_path, BURST), limit=2).pairs == ((472, 18), (417, 276))
    with pytest.raises(ValueError, match="--limit must be between 1"):
        read_trace(write(tmp_path, AZURE), limit=0)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (AZURE + "2023-11-17 00:00:01,87", 1),  # cut off
        (AZURE + "yesterday,879,55\n", 1),
        (AZURE + "2023-13-40 00:00:01,879,55\n", 1),
        (AZURE + "2023-11-17 00:00:01,-879,55\n2023-11-17 00:00:01,8.5,55\n", 2),
        (BURST + "nan,ChatGPT,1,2,3,API log\ninf,ChatGPT,1,2,3,API log\n", 2),
        (BURST + "7,ChatGPT,1,99999999999,3,API log\n\n\n", 1),
        (MOONCAKE + '{"timestamp": 4000, "input_length": 73', 1),
        (MOONCAKE + '{"timestamp": "4000", "input_length": 1, "output_length": 1}\n[]\n', 2),
        (MOONCAKE + '{"timestamp": null, "input_length": 1, "output_length": 1}\n', 1),
    ],
)
def test_broken_requests_are_left_out_and_reported(tmp_path: Path, text: str, broken: int) -> None:
    trace = read_trace(write(tmp_path, text))
    assert trace.tally.broken == broken
    assert any("broken or cut off" in note for note in trace.notes)
    assert len(trace.times) in (2, 3)


def test_a_trace_with_cut_off_compression_gives_its_complete_requests(tmp_path: Path) -> None:
    rows = [f"{i},ChatGPT,{i * 7919 % 1000 + 1},{i * 104729 % 500 + 1},0,API log\n" for i in range(5000)]
    whole = gzip.compress((BURST.splitlines()[0] + "\n" + "".join(rows)).encode())
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(whole[:-3000])
    trace = read_trace(path)
    assert 2000 < len(trace.pairs) < 5000
    assert all(pair == (i * 7919 % 1000 + 1, i * 104729 % 500 + 1) for i, pair in enumerate(trace.pairs))
    assert "the compressed file is damaged or cut off" in trace.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"its columns: none"),
        ("a,b\n1,2\n", r"is not a trace \(its columns: a, b\).* \(azure: timestamp, contexttokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no complete request"),
        ('{"prompt": "x"}\n', "has no complete request"),
        ("{not json\n", "neither a list of JSON records nor has one record per line"),
    ],
)
def test_a_file_that_is_not_a_trace_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_trace(write(tmp_path, text))


def test_the_arrival_statistics_of_a_trace(tmp_path: Path) -> None:
    rows = "".join(f"{t},5,5\n" for t in (0, 1, 2, 6))
    found = timing(read_trace(write(tmp_path, "timestamp,prompt_tokens,output_tokens\n" + rows)))
    assert (found.seconds, found.rate) == (6.0, 0.5)
    assert found.cv == pytest.approx((2**0.5) / 2)  # of gaps 1, 1, 4
    once = timing(read_trace(write(tmp_path, "timestamp,prompt_tokens,output_tokens\n3,5,5\n")))
    assert (once.rate, once.cv) == (None, None)


BAILIAN = """{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61, "input_length": 9, "output_length": 5}
{"chat_id": 2, "parent_chat_id": 1, "timestamp": 64, "input_length": 9, "output_length": 5}
"""
GUIDELLM = """{"timestamp": 0, "input_length": 9, "output_length": 5}
{"timestamp": 0.2, "input_length": 9, "output_length": 5}
{"timestamp": 1.5, "input_length": 9, "output_length": 5}
"""
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,100,20\n1.75,30,40\n"
SPLITWISE = (
    "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,0.5,1,100,20\n1,2,0,1.75,1,30,40\n"
)


@pytest.mark.parametrize(
    ("text", "form", "times"),
    [
        (BAILIAN, "mooncake", (0.0, 3.0)),
        (GUIDELLM, "mooncake", (0.0, 0.2, 1.5)),
        (VIDUR, "vidur", (0.0, 1.25)),
        (SPLITWISE, "splitwise", (0.0, 1.25)),
    ],
)
def test_times_in_seconds_are_read_as_seconds(
    tmp_path: Path, text: str, form: str, times: tuple[float, ...]
) -> None:
    trace = read_trace(write(tmp_path, text, "t.jsonl"))
    assert (trace.format, trace.times) == (form, times)


def test_a_unit_that_cannot_be_told_must_be_given(tmp_path: Path) -> None:
    row = '{{"timestamp": {}, "input_length": 9, "output_length": 5}}'
    path = write(tmp_path, "\n".join(row.format(at) for at in range(0, 40, 2)), "t.jsonl")
    with pytest.raises(ValueError, match=r"seconds or milliseconds .* --time-unit s or --time-unit ms"):
        read_trace(path)
    assert read_trace(path, time_unit="s").times[-1] == 38.0
    assert read_trace(path, time_unit="ms").times[-1] == 0.038
    slow = write(tmp_path, "\n".join(row.format(1000 * at) for at in range(20)), "slow.jsonl")
    trace = read_trace(slow)
    assert trace.times[-1] == 19.0
    assert any("read as milliseconds; --time-unit" in note for note in trace.notes)


def test_what_is_not_replayed_is_reported(tmp_path: Path) -> None:
    notes = read_trace(write(tmp_path, MOONCAKE, "t.jsonl")).notes
    assert any("shared prefixes (hash_ids) are not replayed" in note for note in notes)
    notes = read_trace(write(tmp_path, BAILIAN, "t.jsonl")).notes
    assert any("--multi-turn replays its conversations" in note for note in notes)


def test_columns_can_be_named(tmp_path: Path) -> None:
    columns = parse_columns("time=when, prompt=in, output=out")
    table = write(tmp_path, "in,Out,when,out\n10,x,1.5,20\n30,x,0.5,40\n")
    assert read_trace(table, columns=columns).pairs == ((30, 40), (10, 20))
    lines = write(tmp_path, '{"when": "2024-05-10 00:00:01", "in": 3, "out": 4}\n', "t.jsonl")
    assert read_trace(lines, columns=columns).pairs == ((3, 4),)
    with pytest.raises(ValueError, match=r"has no column when, in, out .* correct --columns"):
        read_trace(write(tmp_path, PLAIN), columns=columns)
    with pytest.raises(ValueError, match="--columns lacks output"):
        parse_columns("time=a,prompt=b")
    with pytest.raises(ValueError, match="'size=a' is not one of"):
        parse_columns("size=a")


def test_a_parquet_file_is_read_like_a_table(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"timestamp": [0.5, 1.5], "prompt_tokens": [3, 4], "output_tokens": [5, 6]}), path
    )
    trace = read_trace(path)
    assert (trace.format, trace.times, trace.pairs) == ("plain", (0.0, 1.0), ((3, 5), (4, 6)))


def test_the_first_problem_of_a_trace_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n11/16/2023 18:15:46,5,6\n")
    with pytest.raises(ValueError, match=r"the first problem: record 1: '11/16/2023 18:15:46' is not a date"):
        read_trace(path)
    trace = read_trace(write(tmp_path, AZURE + "2023-11-17 00:00:01,-879,55\n"))
    assert "(record 4: '-879' is not a number of tokens)" in trace.notes[0]


def test_a_window_of_a_large_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "timestamp,prompt_tokens,output_tokens\n" + "".join(f"{i},{i + 1},2\n" for i in range(1000))
    )
    trace = read_trace(path, 3, skip=500)
    assert (trace.times, [prompt for prompt, _ in trace.pairs]) == ((0.0, 1.0, 2.0), [501, 502, 503])
    with pytest.raises(ValueError, match="no complete request after 1,000 records with a time"):
        read_trace(path, skip=1000)


def test_dates_have_no_unit(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("at,in,out\n2024-01-01 00:00:00,5,2\n2024-01-01 00:00:10,5,2\n")
    named = {"time": "at", "prompt": "in", "output": "out"}
    assert read_trace(path, columns=named).times == (0.0, 10.0)
    with pytest.raises(ValueError, match="its times are dates, which have no unit: leave out --time-unit"):
        read_trace(path, columns=named, time_unit="ms")


def test_a_parquet_file_has_dates_and_shared_blocks(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    at = [datetime(2024, 1, 1, 0, 0, second) for second in (0, 10)]
    columns = {
        "TIMESTAMP": at,
        "ContextTokens": [20, 32],
        "GeneratedTokens": [2, 2],
        "hash_ids": [[1, 2], [1, 3]],
    }
    pq.write_table(pa.table(columns), path)
    trace = read_trace(path)
    assert trace.times == (0.0, 10.0)
    assert trace.shared == ((("block 1", 16), ("block 2", 4)), (("block 1", 16), ("block 3", 16)))
