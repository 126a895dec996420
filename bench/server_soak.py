"""Checks that a server's memory does not grow: sends many small requests, prints its processes' memory.

    python bench/server_soak.py --requests 100000
    python bench/server_soak.py --requests 10000 -- --policy vtc --offloading proactive

The model has two small layers, so that requests take about a millisecond. Of every ten requests, five are
completions, one is streamed, one is a chat, two are invalid and the client of one leaves before the end. One
of a hundred has a text that is encoded in the other process. Options after ``--`` are those of
``fgbench serve``. The exit status is 1 if a process has more memory after the last tenth of the requests than
after the first two tenths, by more than 8 MiB and 4%, or if KV blocks are still in use at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PARALLEL = 32
TENTHS = 10
GROWTH_BYTES, GROWTH_SHARE = 8 * 2**20, 0.04


@contextlib.contextmanager
def serving(options: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server of the small model; give its URL and its process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(SHAPE))
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        from fgengine.model.store import tokenizer_folder

        tokenizer = tokenizer_folder(str(folder), True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            if (tokenizer / file).is_file():
                (folder / file).write_bytes((tokenizer / file).read_bytes())
        command = [sys.executable, "-m", "fgbench", "serve", "--model", name, "--use-dummy-weights"]
        command += ["--device", "cpu", "--port", "0", "--drain-timeout", "0"]
        command += ["--num-device-blocks", "2000", *options]
        with (folder / "server.log").open("w") as log:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            ready = next((line for line in server.stdout if "ready: " in line), None)
            if ready is None:
                raise SystemExit((folder / "server.log").read_text())
            yield ready.partition("ready: ")[2].split()[0], psutil.Process(server.pid)
        finally:
            server.terminate()
            server.wait()


def memory(server: psutil.Process) -> dict[str, int]:
    """Return the resident bytes of the server's processes, by their task."""
    found = {"http": server.memory_info().rss}
    for child in server.children():
        words = " ".join(child.cmdline())
        task = "encoding" if "text_worker" in words else "engine"
        found[task] = found.get(task, 0) + child.memory_info().rss
    return found


async def one(session: aiohttp.ClientSession, url: str, number: int) -> None:
    kind = number % 10
    path, body = "/v1/completions", dict[str, Any](prompt=f"request {number}", max_tokens=2)
    if kind == 5:
        body["stream"] = True
    elif kind == 6:
        path = "/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": f"request {number}"}], "max_tokens": 2}
    elif kind == 7:
        body["prompt"] = "x" * (
            4050 if number % 100 == 7 else 8000
        )  # 8,000: more tokens than the model takes
    elif kind == 8:
        body["temperature"] = -1
    elif kind == 9:
        body |= {"stream": True, "max_tokens": 1000}
    async with session.post(url + path, json=body) as response:
        if kind == 9:
            await response.content.readany()
            response.close()
            return
        await response.read()
        if response.status != (400 if kind == 8 or len(body.get("prompt", "")) == 8000 else 200):
            raise SystemExit(f"{path} {body}: {response.status} {await response.text()}")


async def soak(url: str, server: psutil.Process, requests: int) -> list[dict[str, int]]:
    """Send the requests; return the memory after each tenth of them."""
    samples = []
    connector = aiohttp.TCPConnector(limit=PARALLEL)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
        numbers = iter(range(requests))

        async def worker(until: int) -> None:
            for number in numbers:
                await one(session, url, number)
                if number >= until:
                    return

        for tenth in range(1, TENTHS + 1):
            begun = time.monotonic()
            await asyncio.gather(*(worker(requests * tenth // TENTHS - PARALLEL) for _ in range(PARALLEL)))
            samples.append(memory(server))
            sizes = "  ".join(f"{task} {size / 2**20:6.1f} MiB" for task, size in samples[-1].items())
            rate = requests / TENTHS / (time.monotonic() - begun)
            print(f"{requests * tenth // TENTHS:>8} requests  {sizes}  {rate:5.0f}/s", flush=True)
        await asyncio.sleep(1.0)
        async with session.get(url + "/stats") as response:
            stats = await response.json()
    print(
        json.dumps({name: value for name, value in stats.items() if "blocks" in name or "requests" in name})
    )
    if stats["free_device_blocks"] != stats["num_device_blocks"] or stats["requests_in_flight"]:
        raise SystemExit("KV blocks or requests are still in use")
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    args, options = parser.parse_known_args()
    with serving([option for option in options if option != "--"]) as (url, server):
        samples = asyncio.run(soak(url, server, args.requests))
    grown = {
        task: (samples[1][task], size)
        for task, size in samples[-1].items()
        if task in samples[1] and size - samples[1][task] > max(GROWTH_BYTES, GROWTH_SHARE * samples[1][task])
    }
    for task, (before, after) in grown.items():
        print(f"{task} grew from {before / 2**20:.1f} to {after / 2**20:.1f} MiB")
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
