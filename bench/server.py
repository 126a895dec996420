"""Measures how many tokens per second the server process can stream, with an engine that takes no time.

    python bench/server.py [--requests 64] [--tokens 500] [--endpoint completions|generate] [--concurrency 64]
    python bench/server.py --requests 10000 --tokens 1  # the cost of a request instead of a token

The engine's process steps as fast as it can, and the client only counts bytes. Prints JSON: tokens per second
of wall time, and tokens and requests per second of the server process's CPU time. The latter are its limits
on a dedicated core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import psutil
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from fgengine.config import EngineConfig
from fgengine.plan import TokenEvent
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.refusal import QueueTimeout

SERVE = """
import sys
from pathlib import Path
from fgengine.config import EngineConfig
from fgengine.server.options import ServerOptions
from fgengine.server.serving import run
run(EngineConfig(), ServerOptions(port=0), lambda: Path(sys.argv[1]),
    report=lambda text: print(text, flush=True), worker=[sys.executable, sys.argv[2], "--worker"])
"""


class NullEngine:
    """An engine that produces one token for every request in every step, without computing."""

    model_name, vocab_size, max_model_len, longest_step = "null", 256, 1 << 20, 0.0
    room = None
    retry_after = None

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(
        self, id: str, prompt: list[int], params: SamplingParams, *, user: str, arrival: float
    ) -> Request:
        self.requests[id] = Request.new(id, prompt, params, arrival, user)
        return self.requests[id]

    def abort(self, id: str) -> bool:
        return self.requests.pop(id, None) is not None

    def prepare(self, params: SamplingParams) -> None:
        return None

    def expire(self) -> list[tuple[Request, QueueTimeout]]:
        return []

    def step(self) -> list[TokenEvent]:
        time.sleep(0.002)  # otherwise all tokens of 64 requests would be in the channel before one is read
        events = []
        for request in list(self.requests.values()):
            request.tokens.append(97)
            if request.num_generated == request.params.max_tokens:
                request.finish("length", time.monotonic())
                del self.requests[request.id]
            events.append(TokenEvent(request, 97, None))
        return events

    def stats(self) -> dict[str, float | int | str]:
        return {}

    def close(self) -> None:
        pass


def work() -> None:
    """Run the engine's process with a ``NullEngine``."""
    from fgengine.server import worker

    def make(config: EngineConfig, report: Callable[[str], None]) -> NullEngine:
        return NullEngine()

    sys.argv.remove("--worker")
    worker._load_engine = make
    worker.main()


async def measure(
    url: str, pid: int, requests: int, tokens: int, endpoint: str, concurrency: int
) -> dict[str, float]:
    body = {"prompt": [97], "max_tokens": tokens, "stream": True, "ignore_eos": True}
    path, end = ("/generate", b"\0") if endpoint == "generate" else ("/v1/completions", b"\n\n")
    server = psutil.Process(pid)

    async def ask(session: aiohttp.ClientSession) -> int:
        async with session.post(url + path, json=body) as response:
            return sum([chunk.count(end) async for chunk in response.content.iter_any()])

    async def ask_in_turn(session: aiohttp.ClientSession, left: Iterator[int]) -> list[int]:
        return [await ask(session) for _ in left]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await ask(session)
        start, cpu = time.perf_counter(), sum(server.cpu_times()[:2])
        left = iter(range(requests))
        streams = await asyncio.gather(*(ask_in_turn(session, left) for _ in range(concurrency)))
        seconds, cpu = time.perf_counter() - start, sum(server.cpu_times()[:2]) - cpu
    marker = 0 if endpoint == "generate" else 1
    pieces = [count for stream in streams for count in stream]
    if any(count != tokens + marker for count in pieces):
        raise SystemExit(f"each stream should have {tokens} pieces, but some have {sorted(set(pieces))}")
    total = requests * tokens
    return {
        "tokens": total,
        "tokens_per_second": round(total / seconds),
        "tokens_per_server_cpu_second": round(total / cpu),
        "server_cpu_us_per_token": round(cpu / total * 1e6, 1),
        "requests_per_server_cpu_second": round(requests / cpu),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--endpoint", choices=["completions", "generate"], default="completions")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(BPE(vocab=alphabet, merges=[]))
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(Path(folder) / "tokenizer.json"))
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, folder, __file__], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            ready = next(line for line in server.stdout if line.startswith("ready: "))
            figures = asyncio.run(
                measure(
                    ready.split()[1],
                    server.pid,
                    args.requests,
                    args.tokens,
                    args.endpoint,
                    args.concurrency,
                )
            )
            print(json.dumps(figures, indent=2))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    work() if "--worker" in sys.argv else main()
