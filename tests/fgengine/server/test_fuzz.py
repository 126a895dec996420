"""The server answers or closes whatever it is sent, and then it still serves.

FGBENCH_NIGHTLY=1 sends ten times as many requests. FGBENCH_FUZZ_SEED=N sends only the request of that seed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import pytest
from http_fuzz import Answer, Case, NotHttp, each_field_with_each_value, judge, make_case, parse, send

NIGHTLY = os.environ.get("FGBENCH_NIGHTLY") == "1"
ONLY = os.environ.get("FGBENCH_FUZZ_SEED")
CASES = 10_000 if NIGHTLY else 1000
CASES_OF_A_REAL_ENGINE = 1000 if NIGHTLY else 150
AT_ONCE = 16
SHOWN = 8
"""Number of wrong cases after which no more are sent."""
AFTER = {"prompt": [5, 6], "max_tokens": 3, "ignore_eos": True}
"""A request that must be answered after all others."""

GOOD = b'{"error":{"message":"a b c","type":"t","param":null,"code":null}}'
CASE = Case(0, (b"GET / HTTP/1.1\r\n\r\n",), "wait", requests=1, complete=True)
JSON = {"content-type": "application/json"}


async def fuzz(url: str, seeds: Iterable[int]) -> Counter[str]:
    """Send the cases of the seeds, some at a time; return the number of answers by status.

    Fails with the seeds and the bytes of the first cases whose answers are wrong.
    """
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    statuses: Counter[str] = Counter()
    problems: list[str] = []
    waiting = iter(seeds)

    async def work() -> None:
        for seed in waiting:
            case = make_case(seed)
            try:
                answers = await send(host, port, case)
                problem = judge(case, answers)
            except (asyncio.TimeoutError, OSError, NotHttp) as error:
                answers, problem = [], f"{type(error).__name__}: {error}"
            if problem is not None:
                problems.append(f"{problem}\n{case}")
            if len(problems) == SHOWN:
                return
            statuses.update(str(answer.status) for answer in answers)
            statuses["none"] += not answers

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    if problems:
        pytest.fail("\n\n".join(problems[:SHOWN]))
    return statuses


def seeds(number: int) -> Iterable[int]:
    return [int(ONLY)] if ONLY else range(number)


@pytest.mark.slow
@pytest.mark.timeout(1800 if NIGHTLY else 240)
async def test_the_server_survives_what_no_client_should_send(
    served: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.ERROR)  # below that, there are lines about fields that the server ignores
    served.engine.step_seconds = 0.0
    served.limit_length(96)
    statuses = await fuzz(served.url, seeds(CASES))
    await served.until(lambda: not served.engine.requests)
    await served.until(lambda: served.service.counters.requests_in_flight == 0)
    assert served.service.engine.state == "ready"
    assert served.service.counters.requests_failed == 0
    assert caplog.records == []
    assert "Traceback" not in capfd.readouterr().err
    print("answers by status:", dict(sorted(statuses.items())))  # only now: readouterr takes what was printed
    assert (await served.post("/v1/completions", AFTER))[1]["choices"][0]["finish_reason"] == "length"
    status, stats = await served.get("/stats")
    assert status == 200
    assert stats["free_device_blocks"] == stats["num_device_blocks"]
    if not ONLY:
        assert statuses["200"] > CASES / 10
        assert statuses["400"] > CASES / 10


@pytest.mark.slow
@pytest.mark.timeout(1800 if NIGHTLY else 240)
async def test_a_real_engine_survives_it_and_keeps_no_memory(
    serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with serving(policy="sj-mlfq", max_model_len=96) as (url, session):
        statuses = await fuzz(url, seeds(CASES_OF_A_REAL_ENGINE))
        print("answers by status:", dict(sorted(statuses.items())))
        async with session.post(url + "/v1/completions", json=AFTER) as response:
            assert response.status == 200
        while True:  # the test's timeout ends it
            async with session.get(url + "/stats") as response:
                stats = await response.json()
            if stats["requests_in_flight"] == stats["running"] + stats["waiting"] + stats["swapped"] == 0:
                break
            await asyncio.sleep(0.01)
        assert stats["requests_failed"] == 0
        assert caplog.records == []
        for pool in ("device", "host"):
            assert stats[f"free_{pool}_blocks"] == stats[f"num_{pool}_blocks"]


@pytest.mark.slow
async def test_no_value_of_any_field_makes_the_server_fail(served: Any) -> None:
    served.engine.step_seconds = 0.0
    served.limit_length(96)
    waiting = each_field_with_each_value()
    statuses: Counter[int] = Counter()
    headers = {"Content-Type": "application/json"}

    async def work() -> None:
        for path, field, body in waiting:
            async with served.session.post(served.url + path, data=body, headers=headers) as response:
                answer = Answer(
                    response.status, {"content-type": response.content_type}, await response.read(), True
                )
            if (problem := judge(CASE, [answer])) is not None:
                pytest.fail(f"{path}, {field}: {problem}\n{body!r}")
            statuses[answer.status] += 1

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    print("answers by status:", dict(sorted(statuses.items())))
    assert set(statuses) == {200, 400, 404}
    assert served.service.engine.state == "ready"
    assert not served.engine.requests


def test_a_case_is_made_from_its_seed_alone() -> None:
    assert [make_case(seed) for seed in range(200)] == [make_case(seed) for seed in range(200)]
    assert len({make_case(seed).raw for seed in range(200)}) > 150


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([Answer(505, JSON, GOOD, True)], None),
        ([Answer(404, JSON, GOOD, True)], None),
        ([Answer(503, JSON, GOOD, True)], None),
        ([Answer(404, JSON, GOOD, True)] * 2, "2 answers"),
        ([Answer(500, JSON, GOOD, True)], "failed"),
        ([Answer(404, JSON, GOOD[:-3], False)], "cut off"),
        ([Answer(404, JSON, b"", True)], "no body"),
        ([Answer(404, JSON, b'{"error":"no"}', True)], "OpenAI's form"),
        ([Answer(404, JSON, GOOD.replace(b"a b c", b"a"), True)], "sentence"),
        ([Answer(404, {"content-type": "text/html"}, GOOD, True)], "text/html"),
        ([Answer(200, JSON, b"{", True)], "not JSON"),
        ([Answer(200, {"content-type": "text/event-stream"}, b"data: {}\n\n", True)], "no end"),
    ],
)
def test_wrong_answers_are_found(answers: list[Answer], problem: str | None) -> None:
    found = judge(CASE, answers)
    assert (found is None) == (problem is None)
    assert problem is None or problem in str(found)


def test_answers_are_read_as_they_were_framed() -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\n"
    raw += b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    raw += b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    raw += b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nabc"
    found = parse(raw, head=False)
    assert [(answer.status, answer.body, answer.whole) for answer in found] == [
        (200, b"{}", True),
        (200, b"abc", True),
        (404, b"abc", False),
    ]
    with pytest.raises(NotHttp):
        parse(b"{}", head=False)
