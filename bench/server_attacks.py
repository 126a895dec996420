"""What large requests of one client cost the others: gaps in a stream, the time of /health, memory.

    python bench/server_attacks.py

Starts ``fgbench serve`` with SmolLM2-135M and, for each attack, streams an answer and asks /health all the
time. The machine should be idle otherwise. Each line has the attack, the statuses of its answers, the longest
gap between two tokens of the stream, the longest time of a /health (milliseconds), and the most memory of the
HTTP process and of the processes that encode (MiB). Options are those of ``fgbench serve``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import aiohttp
import psutil

LARGE = 8_000_000
"""Bytes of a body that is larger than any prompt."""
HEALTH_SECONDS, SAMPLE_SECONDS = 0.02, 0.05
AFTER_SECONDS = 1.0
Attack = tuple[str, int, str, dict[str, Any]]
"""Name, number of requests at once, path, body."""


def attacks(limit: int) -> list[Attack]:
    """Return the attacks; ``limit``: the largest body in bytes that the server reads."""
    just_below = limit - 1000
    spaces, words = " " * just_below, ("word " * (just_below // 5))[: 8192 * 81 - 10]
    numbers = list(range(100, 1000)) * 4000
    chat = [{"role": "user", "content": words}]
    return [
        ("none", 0, "/health", {}),
        ("completions, 8 MB", 1, "/v1/completions", {"prompt": "word " * (LARGE // 5)}),
        ("completions, 8 MB", 8, "/v1/completions", {"prompt": "word " * (LARGE // 5)}),
        (
            "chat, 8 MB",
            8,
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x" * LARGE}]},
        ),
        ("/generate, ids, 8 MB", 8, "/generate", {"prompt": numbers[: LARGE // 5]}),
        ("completions, the longest text", 8, "/v1/completions", {"prompt": words}),
        ("completions, spaces", 8, "/v1/completions", {"prompt": spaces}),
        ("completions, ids below the limit", 8, "/v1/completions", {"prompt": numbers[: just_below // 5]}),
        ("chat, the longest text", 8, "/v1/chat/completions", {"messages": chat}),
    ]


class Watch:
    """A stream, questions for /health, and the memory, while an attack runs."""

    def __init__(self, session: aiohttp.ClientSession, url: str, server: psutil.Process) -> None:
        self.session, self.url, self.server = session, url, server
        self.gaps: list[float] = [0.0]
        self.health: list[float] = [0.0]
        self.memory: list[tuple[int, int]] = [(0, 0)]

    async def stream(self) -> None:
        body = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        last = None
        async with self.session.post(self.url + "/v1/completions", json=body) as response:
            async for _ in response.content.iter_any():
                now = time.monotonic()
                if last is not None:
                    self.gaps.append(now - last)
                last = now

    async def ask_health(self) -> None:
        while True:
            begun = time.monotonic()
            async with self.session.get(self.url + "/health") as response:
                await response.read()
            self.health.append(time.monotonic() - begun)
            await asyncio.sleep(HEALTH_SECONDS)

    async def sample(self) -> None:
        while True:
            encoding = [p for p in self.server.children() if "text_worker" in " ".join(p.cmdline())]
            self.memory.append(
                (self.server.memory_info().rss, sum(process.memory_info().rss for process in encoding))
            )
            await asyncio.sleep(SAMPLE_SECONDS)


async def attack(url: str, server: psutil.Process, one: Attack) -> str:
    """Run one attack; return its line."""
    name, times, path, body = one
    raw = json.dumps(body).encode()

    async def send(session: aiohttp.ClientSession) -> str:
        try:
            headers = {"Content-Type": "application/json"}
            async with session.post(url + path, data=raw, headers=headers) as response:
                await response.read()
                return str(response.status)
        except aiohttp.ClientError as error:
            return type(error).__name__

    async with aiohttp.ClientSession() as calm, aiohttp.ClientSession() as wild:
        watch = Watch(calm, url, server)
        tasks = [asyncio.create_task(task()) for task in (watch.stream, watch.ask_health, watch.sample)]
        await asyncio.sleep(AFTER_SECONDS)
        begun = time.monotonic()
        statuses = Counter(await asyncio.gather(*(send(wild) for _ in range(times))))
        seconds = time.monotonic() - begun
        await asyncio.sleep(AFTER_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    answered = ", ".join(f"{count} x {status}" for status, count in statuses.items()) or "-"
    http, encoding = (max(column) / 2**20 for column in zip(*watch.memory, strict=True))
    return (
        f"{f'{name} x {times}':<40} {answered:<22} {seconds:5.1f} s  gap {max(watch.gaps) * 1e3:6.0f} ms  "
        f"health {max(watch.health) * 1e3:6.0f} ms  http {http:5.0f} MiB  encoding {encoding:5.0f} MiB"
    )


def main() -> None:
    command = [sys.executable, "-m", "fgbench", "serve", "--model", "smollm2-135m", "--policy", "fcfs"]
    command += ["--port", "0", "--drain-timeout", "0", "--log-level", "warning", *sys.argv[1:]]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        ready = next((line for line in server.stdout if "ready: " in line), None)
        if ready is None:
            raise SystemExit("the server did not start")
        url = ready.partition("ready: ")[2].split()[0]
        for one in attacks(limit=512 * 1024 + 2 * 8192 * 81):
            print(asyncio.run(attack(url, psutil.Process(server.pid), one)), flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
