"""``fgbench serve``: starts fgengine's HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgbench.cli.flags import ConfigFile, takes_options
from fgengine.config import EngineConfig


@takes_options
def serve(
    server: EngineConfig,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all, unprotected.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 10000,
    config: ConfigFile = None,
) -> None:
    """Serve a model over HTTP with a scheduling policy that you choose.

    It has OpenAI's /v1/completions, /v1/chat/completions and /v1/models, the /generate of FastServe and of
    vLLM's old api_server, /health (503 until ready) and /stats.

    Example, in two terminals:

        fgbench serve --policy sj-mlfq --max-batch-size 16

        curl localhost:10000/v1/completions -d '{"prompt": "Hi", "max_tokens": 30}'

    It ends within 5 seconds after Ctrl-C (exit code 130) or SIGTERM (exit code 0). A second signal ends it at
    once.
    """
    from fgengine.model.store import folder_of, tokenizer_of
    from fgengine.preflight import check_names
    from fgengine.server.app import run

    check_names(server)

    def report(sentence: str) -> None:
        print(f"fgbench serve: {sentence}", flush=True)

    def find_tokenizer() -> Path:
        if not server.use_dummy_weights and folder_of(server.model) is None:
            _require_memory(server)  # first: a model that does not fit needs no download
        return tokenizer_of(server)

    raise typer.Exit(run(server, find_tokenizer, host=host, port=port, report=report))


def _require_memory(config: EngineConfig) -> None:
    from fgengine.execution.machine import require_memory
    from fgengine.model.catalog import shape_of

    require_memory(config, shape_of(config.model))
