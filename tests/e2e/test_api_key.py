"""A server with a key, as a user starts, watches and measures it; the key is shown nowhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.results.run import find_runs, read_run

KEY = "s3cret-k3y"
SERVER = ["--model", "opt-125m", "--use-dummy-weights", "--device-spec", "a100-40gb"]
LOAD = ["--dataset", "synthetic", "--input-len", "10", "--output-len", "20", "--num-prompts", "8"]


class Served:
    """A running ``fgbench serve`` with a key in its environment."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.output = folder / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fgbench", "serve", *SERVER, "--port", "0", *options],
                stdout=output,
                stderr=output,
                env={**os.environ, "FGBENCH_API_KEY": f"{KEY},{KEY}-2"},
            )
        while (found := re.search(r"ready: http://\S+:(\d+) ", self.output.read_text())) is None:
            assert self.process.poll() is None, self.output.read_text()
        self.url = f"http://127.0.0.1:{found[1]}"

    def ask(self, path: str, key: str | None = KEY) -> tuple[int, str]:
        """Return the status and the answer of a GET."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers)) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def stop(self) -> str:
        """End the server; return all that it has printed."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0
        return self.output.read_text()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path, "--log-level", "debug")
    yield served
    served.process.kill()
    served.process.wait()


def test_a_server_with_a_key_shows_it_nowhere_and_can_be_watched_and_measured(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = [psutil.Process(served.process.pid)]
    processes += processes[0].children(recursive=True)
    assert len(processes) > 1
    assert not any(KEY in " ".join(process.cmdline()) for process in processes)
    assert served.ask("/health", None)[0] == 200
    for path in ("/stats", "/server_info", "/v1/models", "/version"):
        assert served.ask(path, None)[0] == served.ask(path, "wrong")[0] == 401
        status, text = served.ask(path, f"{KEY}-2")
        assert status == 200
        assert KEY not in text

    runner, measured = CliRunner(), ["run", "--url", served.url, *LOAD, "--rate", "50"]
    for variable in ("FGBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    for argv in (["watch", served.url, "--once"], [*measured, "--results", str(tmp_path / "refused")]):
        refused = runner.invoke(app, argv)
        assert refused.exit_code == 1
        said = " ".join((refused.output + refused.stderr).split())
        assert "answers 401: give its key with --api-key or --header, or in $FGBENCH_API_KEY" in said
    given = runner.invoke(
        app, ["watch", served.url, "--once", "--json", "--interval", "0.1", "--api-key", KEY]
    )
    assert json.loads(given.output)["stats"]["num_device_blocks"] > 0
    monkeypatch.setenv("FGBENCH_API_KEY", f"{KEY},{KEY}-2")
    watched = runner.invoke(app, ["watch", served.url, "--once", "--interval", "0.1"])
    assert watched.exit_code == 0, watched.output
    done = runner.invoke(app, [*measured, "--results", str(tmp_path / "results")])
    assert done.exit_code in (0, 4), done.output  # 4: the client was the limit on a busy machine
    assert "the key in $FGBENCH_API_KEY is sent to it" in done.output
    (folder,) = find_runs(tmp_path / "results")
    assert read_run(folder).info["status"] == "complete"
    log = served.stop()
    assert log.count(" finished ") >= 8
    shown = (
        done.output
        + watched.output
        + log
        + "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    )
    assert KEY not in shown


def test_a_server_that_fgbench_starts_has_the_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGBENCH_API_KEY", KEY)
    argv = ["run", *SERVER, *LOAD, "--rate", "50", "--results", str(tmp_path)]
    done = CliRunner().invoke(app, argv)
    assert done.exit_code in (0, 4), done.output
    (folder,) = find_runs(tmp_path)
    run = read_run(folder)
    assert run.info["status"] == "complete"
    assert run.info["server_stats"]["after"]["requests_refused"] == 0
    files = {path.name: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}
    assert KEY not in done.output + "".join(files.values())
    assert "finished" not in files["server.log"]  # no line for each request


def test_an_empty_key_in_the_environment_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fgbench", "serve", *SERVER, "--port", "0"],
        env={**os.environ, "FGBENCH_API_KEY": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "$FGBENCH_API_KEY has an empty key" in done.stderr


@pytest.mark.parametrize(
    ("host", "key"), [("0.0.0.0", None), ("::", None), ("0.0.0.0", KEY), ("127.0.0.1", None)]
)
def test_a_server_beyond_loopback_without_a_key_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, key: str | None
) -> None:
    options = ["--host", host, *([] if key is None else ["--api-key", key])]
    output = tmp_path / "output"
    environment = {name: value for name, value in os.environ.items() if name != "FGBENCH_API_KEY"}
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fgbench", "serve", *SERVER, "--port", "0", *options],
            stdout=file,
            stderr=file,
            env=environment,
        )
    try:
        while "ready: " not in output.read_text():
            assert process.poll() is None, output.read_text()
    finally:
        process.terminate()
        process.wait()
    warns = (
        "WARNING the server listens on all of this machine's addresses without a key" in output.read_text()
    )
    assert warns == (host != "127.0.0.1" and key is None)
