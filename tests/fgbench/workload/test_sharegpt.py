from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fgbench.workload import records as records_module
from fgbench.workload.texts import TextPair, TextRecords, first_turns, length_ok, read_records


def talk(name: str, *turns: tuple[str, str]) -> dict[str, Any]:
    return {"id": name, "conversations": [{"from": who, "value": said} for who, said in turns]}


ASKED = talk("a", ("human", "How are you?"), ("gpt", 'Well, "thanks" — you? ☃'), ("human", "Fine"))
LATER = talk("b", ("gpt", "left over"), ("human", "next?"), ("gpt", "yes"))


@pytest.mark.parametrize(
    ("prompt", "output", "ok"),
    [
        (4, 4, True),
        (3, 4, False),
        (4, 3, False),
        (1024, 1024, True),
        (1025, 4, False),
        (1024, 1025, False),
        (4, 2044, True),
        (4, 2045, False),
        (0, 0, False),
    ],
)
def test_accepted_lengths_at_their_limits(prompt: int, output: int, ok: bool) -> None:
    assert length_ok(prompt, output) is ok


@pytest.mark.parametrize("form", ["list", "indented", "lines"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("piece", [7, 1024])
def test_every_format_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, zipped: bool, piece: int
) -> None:
    monkeypatch.setattr(records_module, "_PIECE_BYTES", piece)
    records = [ASKED, LATER, {"id": "c", "prompt": "2+2", "completion": "4"}]
    if form == "lines":
        text = "".join(json.dumps(r) + "\n" for r in records)
    else:
        text = json.dumps(records, indent=2 if form == "indented" else None, ensure_ascii=False)
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())

    found = read_records(path)

    assert list(found) == [
        TextPair("a", "How are you?", 'Well, "thanks" — you? ☃'),
        TextPair("b", "next?", "yes"),
        TextPair("c", "2+2", "4"),
    ]
    assert (found.tally.complete, found.unpaired, found.tally.broken) == (3, 0, 0)


def test_records_without_an_answered_question_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    lonely = [
        talk("none"),
        talk("one", ("human", "hello?")),
        talk("asks twice", ("human", "hello?"), ("human", "anyone?"), ("gpt", "yes")),
        talk("machines", ("gpt", "1"), ("gpt", "0")),
    ]
    path.write_text(json.dumps([*lonely, ASKED]))
    found = read_records(path)
    assert [pair.id for pair in found] == ["a"]
    assert (found.tally.complete, found.unpaired, found.tally.broken) == (5, 4, 0)


def test_the_published_pairing_takes_the_first_two_turns_no_matter_who_speaks(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    talks = [
        talk("none"),
        talk("one", ("human", "hello?")),
        talk("later part", ("gpt", "an answer"), ("human", "go on"), ("gpt", "more")),
        talk("first part", ("human", "hello?"), ("gpt", "hello")),
        {"id": "plain", "prompt": "2+2", "completion": "4"},
    ]
    path.write_text(json.dumps(talks))
    found = TextRecords(path, first_turns)
    assert list(found) == [
        TextPair("later part", "an answer", "go on"),
        TextPair("first part", "hello?", "hello"),
        TextPair("plain", "2+2", "4"),
    ]
    assert found.unpaired == 2


def test_a_file_cut_off_anywhere_gives_its_complete_records(tmp_path: Path) -> None:
    first = json.dumps(ASKED, ensure_ascii=False)
    last = (
        r'{"id": "z", "n": [1.5e3, true, null], "conversations": [{"from": "human", "value": "é\u00e9 \n☃"}]}'
    )
    whole = f"[{first}, {last}]".encode()
    begin = len(f"[{first}, ".encode())
    for cut in range(begin, len(whole) - 1):
        path = tmp_path / "cut.json"
        path.write_bytes(whole[:cut])
        found = read_records(path)
        assert [pair.id for pair in found] == ["a"], whole[:cut]
        assert found.tally.broken == (1 if cut > begin else 0), whole[:cut]


def test_a_cut_off_gzip_file_gives_its_complete_records(tmp_path: Path) -> None:
    text = "".join(
        json.dumps({"id": str(i), "prompt": f"{i * 7919}", "completion": "x"}) + "\n" for i in range(2000)
    )
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(text.encode())[:-500])
    found = read_records(path)
    ids = [int(pair.id) for pair in found]
    assert ids == list(range(len(ids)))
    assert 1000 < len(ids) < 2000


def test_damage_in_the_middle_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    begin = "[" + json.dumps(ASKED) + ","
    path.write_text(begin + ' {"id": oops, "conversations": []}, ' + json.dumps(LATER) + "]")
    found = read_records(path)
    assert [pair.id for pair in found] == ["a"]
    assert found.tally.damaged_at == len(begin) + 1
    assert found.tally.loss == (
        f"bad.json: 1 complete records; the part after character {len(begin) + 1:,} could not be read"
    )


def test_only_broken_lines_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [json.dumps(ASKED), '{"id": oops}', '{"another": "form"}', "[1, 2]", json.dumps(LATER)]
    path.write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff"}\n{"id": "cut')
    found = read_records(path)
    assert [pair.id for pair in found] == ["a", "b"]
    assert (found.tally.complete, found.tally.broken, found.tally.damaged_at) == (2, 5, None)


@pytest.mark.parametrize(
    "text",
    ['{"question": "?"}', "[1, 2]", '{"conversations": [1, 2]}', "\x00\x01binary garbage and more of it"],
)
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    with pytest.raises(ValueError, match="record"):
        list(read_records(path))


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "picture.json"
    path.write_bytes(b"[\xff\xfe")
    with pytest.raises(ValueError, match=r"picture\.json is not a text in UTF-8"):
        list(read_records(path))


def test_a_record_that_is_too_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_RECORD_CHARS", 1000)
    monkeypatch.setattr(records_module, "_PIECE_BYTES", 100)
    path = tmp_path / "long.json"
    path.write_text('[{"id": "' + "x" * 5000)
    with pytest.raises(ValueError, match="not a list of JSON records"):
        list(read_records(path))
