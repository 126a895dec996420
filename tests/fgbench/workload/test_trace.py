"""Tests of reading traces: published formats, and damaged files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fgbench.cli.datasets import timing
from fgbench.workload.trace import read_trace

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
