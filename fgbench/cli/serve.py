"""``fgbench serve``: starts fgengine's HTTP server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import typer

from fgbench.cli.flags import ConfigFile, takes_options
from fgengine.config import EngineConfig
from fgengine.server.options import KEY_VARIABLE, ServerOptions


@takes_options
def serve(
    server: EngineConfig,
    options: ServerOptions,
    config: ConfigFile = None,
) -> None:
    """Serve a model over HTTP with a scheduling policy that you choose.

    It has OpenAI's /v1/completions, /v1/chat/completions and /v1/models, vLLM's /tokenize and /detokenize,
    the /generate of FastServe and of vLLM's old api_server, /health (503 until ready), /health/live, /stats,
    /metrics for Prometheus, /version, /server_info and /openapi.json.

    Example, in two terminals:

        fgbench serve --policy sj-mlfq --max-batch-size 16

        curl localhost:10000/v1/completions -H 'Content-Type: application/json' \\
            -d '{"prompt": "Hi", "max_tokens": 30}'

    With --device-spec, it serves a device that is not here: steps take as long as
    its analytic profile predicts, and answers are filler. Neither weights nor
    torch are needed. Example: try a client or a router on an A100:

        fgbench serve --device-spec a100-40gb --model opt-13b

    By default only this machine can reach it. With --host, set $FGBENCH_API_KEY too.
    The log on stderr has one line for each request.

    It ends within 5 seconds after Ctrl-C (exit code 130). After SIGTERM or SIGHUP it first finishes the open
    requests, for up to --drain-timeout seconds (exit code 0). A second signal ends it at once.
    """
    from fgengine.model.store import folder_of, tokenizer_of
    from fgengine.preflight import check_names
    from fgengine.server.serving import run

    check_names(server)
    options = options.with_key_of(os.environ)
    os.environ.pop(KEY_VARIABLE, None)  # the child processes do not need it

    def report(sentence: str) -> None:
        with contextlib.suppress(OSError):  # a full disk or a closed pipe must not end the server
            print(f"fgbench serve: {sentence}", flush=True)

    def find_tokenizer() -> Path:
        if server.device_spec is not None:
            return _tokenizer_without_weights(server, report)
        if not server.use_dummy_weights and folder_of(server.model) is None:
            _require_memory(server)  # first: a model that does not fit needs no download
        return tokenizer_of(server)

    raise typer.Exit(run(server, options, find_tokenizer, report=report))


def _tokenizer_without_weights(config: EngineConfig, report: Callable[[str], None]) -> Path:
    """Return the chosen tokenizer, else that of the pulled model, else one token for each byte."""
    from fgengine.model.store import folder_of, tokenizer_folder, tokenizer_of

    if config.tokenizer is not None:
        return tokenizer_of(config)
    folder = None if config.use_dummy_weights else folder_of(config.model)
    if folder is not None and (folder / "tokenizer.json").is_file():
        return folder
    report(f"no tokenizer of {config.model} is used: texts are encoded with one token for each byte")
    return tokenizer_folder(config.model, True)


def _require_memory(config: EngineConfig) -> None:
    from fgengine.execution.machine import require_memory
    from fgengine.model.catalog import shape_of

    require_memory(config, shape_of(config.model))
