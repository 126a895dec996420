"""A fixture that makes an environment with a fake vLLM in it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from fgbench.backends import vllm_install, vllm_options

SERVER = Path(__file__).with_name("fake_vllm_server.py")


@pytest.fixture
def fake_vllm(tmp_path, monkeypatch):
    """Return a function that makes a fake vLLM and returns its Python."""
    for name in (vllm_install.VARIABLE, vllm_options.BIND, vllm_options.KV_SPACE):
        monkeypatch.delenv(name, raising=False)

    def make(generation="0.32", *, version=None, cuda=None, **behaviour):
        folder = tmp_path / f"environment-{generation}-{len(list(tmp_path.iterdir()))}"
        server = folder / "packages" / "vllm" / "entrypoints" / "openai" / "api_server.py"
        server.parent.mkdir(parents=True)
        for package in (
            server.parents[2],
            server.parents[1],
            server.parents[0],
            folder / "packages" / "torch",
        ):
            package.mkdir(exist_ok=True)
            (package / "__init__.py").touch()
        shutil.copyfile(SERVER, server)
        (server.parent / "behaviour.json").write_text(json.dumps({"generation": generation, **behaviour}))
        number = version or f"{generation}.0"
        (server.parents[2] / "_version.py").write_text(f"__version__ = version = '{number}'\n")
        (folder / "packages" / "torch" / "version.py").write_text(f"cuda: Optional[str] = {cuda!r}\n")
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "packages"} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return str(python)

    return make
