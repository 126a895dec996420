"""The server as a user starts it, under floods of half-sent and of complete requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme
from raw_http import Raw, half_body, post

from fgengine.server.connections import BODY_BUDGET

HALF_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
FLOOD = 1500
Start = Callable[..., tuple[str, subprocess.Popen[bytes]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `fgbench serve` with an emulated engine and a limit of open files; return its URL and process."""
    processes: list[subprocess.Popen[bytes]] = []

    def make(*options: str, files: int = 1024) -> tuple[str, subprocess.Popen[bytes]]:
        serve = f"{sys.executable} -m fgbench serve --device-spec a100-40gb --model opt-13b --port 0"
        log = tmp_path / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", f'ulimit -n {files}; exec {serve} "$@"', "serve", *options],
                stdout=output,
                stderr=output,
                env={**os.environ, "FGBENCH_CACHE": str(tmp_path)},
            )
        processes.append(process)
        while "ready: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        return log.read_text().partition("ready: ")[2].split()[0], process

    yield make
    for process in processes:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "server.log").read_text()


async def health_seconds(url: str, times: int) -> list[float]:
    """Return how long /health took on each of some new connections, in order of length."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        async with aiohttp.ClientSession() as session, session.get(url + "/health") as response:
            assert response.status == 200
        found.append(time.perf_counter() - began)
    return sorted(found)


@pytest.mark.slow
async def test_half_sent_requests_do_not_keep_others_away(start: Start) -> None:
    url, process = start(files=1024)
    held = []
    for number in range(FLOOD):
        raw = await Raw.to(url)
        raw.send(HALF_HEAD if number % 2 else half_body())
        held.append(raw)
    # 50 ms on a quiet machine. Requests that are kept away would wait for the 10 s that a head may take.
    assert (await health_seconds(url, 200))[197] < 5.0
    async with aiohttp.ClientSession() as session:
        for _ in range(20):
            body = {"prompt": "abc", "max_tokens": 3}
            async with session.post(url + "/v1/completions", json=body) as response:
                assert response.status == 200
    assert psutil.Process(process.pid).num_fds() < 1000
    for raw in held:
        raw.leave()


@pytest.mark.slow
async def test_a_flood_of_complete_requests_is_refused_above_the_limit_and_none_is_reset(
    start: Start,
) -> None:
    url, _ = start("--max-connections", "50", files=512)
    statuses: Counter[Any] = Counter()

    async def ask(raw: Raw) -> None:
        statuses[(await raw.answer())[0]] += 1
        raw.leave()

    raws = []
    for _ in range(100):
        raw = await Raw.to(url)
        raw.send(post("/v1/completions", {"prompt": "abc", "max_tokens": 200}))
        raws.append(raw)
    asking = [asyncio.create_task(ask(raw)) for raw in raws]
    assert len(await health_seconds(url, 10)) == 10
    await asyncio.gather(*asking)
    assert statuses[200] >= 50
    assert statuses[200] + statuses[503] == 100


@pytest.mark.slow
async def test_unfinished_large_bodies_do_not_fill_the_memory(start: Start) -> None:
    url, process = start()
    before = psutil.Process(process.pid).memory_info().rss
    held = []
    for _ in range(100):
        raw = await Raw.to(url)
        raw.send(half_body(8_000_000, sent=b" " * 7_900_000))
        with contextlib.suppress(ConnectionError):
            await raw.writer.drain()
        held.append(raw)
    assert (await health_seconds(url, 20))[-1] < 10.0
    assert psutil.Process(process.pid).memory_info().rss - before < 4 * BODY_BUDGET
    for raw in held:
        raw.leave()


@pytest.mark.slow
def test_a_run_against_the_server_over_https(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    url, _ = start("--ssl-certfile", str(tmp_path / "server.pem"))
    assert url.startswith("https://")
    command = [
        "run",
        "--url",
        url,
        "--ca-file",
        str(tmp_path / "ca.pem"),
        "--num-prompts",
        "3",
        "--rate",
        "20",
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "fgbench", *command, "--results", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
