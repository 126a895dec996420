"""A program with the command line, the log and the API of vLLM's server, without a model.

``behaviour.json`` next to it says which generation it imitates and how it misbehaves:

    generation          "0.5", "0.8" or "0.32": options, help and log of that time
    start_seconds       seconds before it listens
    prints              lines that it prints before that
    dies_at_start       it ends with a traceback
    dies_at_request     number of the request at which it ends
    child               it starts a child that ignores SIGTERM, and leaves it behind
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEHAVIOUR = json.loads((Path(__file__).parent / "behaviour.json").read_text())
GENERATION = BEHAVIOUR["generation"]
IGNORING = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def parser():
    new = GENERATION == "0.32"
    made = argparse.ArgumentParser(prog="api_server.py", add_help=not new)
    for flag in ("host", "model", "tokenizer", "load-format"):
        made.add_argument(f"--{flag}", default=None, help="A text. See --swap-space-of-a-removed-option.")
    numbers = [
        "port",
        "max-model-len",
        "max-num-seqs",
        "max-num-batched-tokens",
        "num-gpu-blocks-override",
        "seed",
    ]
    for flag in numbers:
        made.add_argument(f"--{flag}", type=int)
    made.add_argument("--gpu-memory-utilization", type=float)
    made.add_argument("--served-model-name", nargs="+")
    made.add_argument("--dtype", choices=["auto", "half", "float16", "bfloat16", "float32"])
    made.add_argument("--block-size", type=int, choices=[8, 16, 32, 64, 128])
    both = argparse.BooleanOptionalAction
    if new:
        made.add_argument("--help", nargs="?", const="groups")
        for flag in (
            "enforce-eager",
            "enable-chunked-prefill",
            "enable-prefix-caching",
            "enable-log-requests",
        ):
            made.add_argument(f"--{flag}", action=both, default=None)
        return made
    made.add_argument("--swap-space", type=float)
    made.add_argument("--device", choices=["auto", "cuda", "cpu"])
    made.add_argument("--num-scheduler-steps", type=int)
    made.add_argument("--disable-log-requests", action="store_true")
    made.add_argument("--disable-custom-all-reduce", action="store_true")
    made.add_argument("--enforce-eager", action="store_true")
    prefix = "store_true" if GENERATION == "0.5" else both
    made.add_argument("--enable-prefix-caching", action=prefix, default=None)
    made.add_argument("--enable-chunked-prefill", nargs="?", const="True", default="False")
    return made


class Handler(BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        known = {"/health": {}, "/v1/models": {"data": [{"id": NAME}]}}
        self.answer(known.get(self.path))

    def answer(self, body):
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_POST(self):
        Handler.requests += 1
        if Handler.requests == BEHAVIOUR.get("dies_at_request"):
            print("RuntimeError: the engine broke", flush=True)
            os._exit(7)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self.event({"choices": [{"text": "x", "finish_reason": None}]})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data):
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def log_message(self, *arguments):
        pass


options = parser().parse_args()
if getattr(options, "help", None):
    text = parser().format_help()
    print(text if options.help == "all" else "usage: api_server.py\n\nConfig Groups:\n  ModelConfig\n")
    sys.exit(0)
NAME = (options.served_model_name or [options.model])[0]
chunked = GENERATION == "0.8" or str(options.enable_chunked_prefill) == "True"
print(f"{os.environ.get('VLLM_CPU_OMP_THREADS_BIND')=} {os.sched_getaffinity(0)=}", flush=True)
print(f"(APIServer pid={os.getpid()}) INFO 11-26 06:15:19 [model.py:733] Resolved architecture", flush=True)
print(
    f"INFO 11-26 06:15:37 [core.py:133] Initializing a V1 LLM engine (v{GENERATION}.0) with config: "
    f"enable_prefix_caching={bool(options.enable_prefix_caching)}, chunked_prefill_enabled={chunked},",
    flush=True,
)
if BEHAVIOUR.get("child"):
    child = subprocess.Popen([sys.executable, "-c", IGNORING])
    print("child", child.pid, flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
print("\n".join(BEHAVIOUR.get("prints", [])), flush=True)
if BEHAVIOUR.get("dies_at_start"):
    raise RuntimeError("Engine core initialization failed")
time.sleep(BEHAVIOUR.get("start_seconds", 0.0))
ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
