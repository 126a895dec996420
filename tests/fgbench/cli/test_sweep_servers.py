"""Tests of ``fgbench sweep`` with servers: started ones that points share, and running ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import fgbench, words

from fgbench.backends.backend import ReadyServer
from fgbench.backends.started import StartedServer
from fgbench.results.run import find_runs, read_run
from fgbench.spec.backend import BackendSpec
from fgbench.sweeping.folder import find_sweeps, read_sweep

TINY = ["--dataset", "synthetic", "--input-len", "4", "--output-len", "3", "--num-prompts", "4"]


class Counted(StartedServer):
    """A backend that uses the fake server of this process; it counts starts but starts nothing."""

    def __init__(self, url: str, name: str = "counted") -> None:
        super().__init__()
        self.fake_url, self.name = url, name
        self.starts = 0
        self.running = False

    def command(self, port: int) -> list[str]:
        raise NotImplementedError

    def _start_new(self, log: Path, report: Any) -> ReadyServer:
        assert not self.running
        self.starts += 1
        self.running = True
        log.write_text("started\n")
        return ReadyServer(self.fake_url, "fake", 512)

    def alive(self) -> bool:
        return self.running

    def close(self) -> None:
        self.running = False


@pytest.fixture
def _client_lag_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgbench.exit_status.LAG_SECONDS", 60.0)


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.parametrize(
    ("options", "starts"),
    [(["--order", "by-backend"], 1), ([], 3), (["--restart"], 4)],
    ids=["by-backend", "interleaved", "restart"],
)
@pytest.mark.slow
def test_points_of_a_backend_in_a_row_share_a_server(
    fake_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], starts: int
) -> None:
    restart = starts == 4
    made: list[Counted] = []

    def backend_of(spec: BackendSpec, *, alone: bool, access: Any) -> Counted:
        made.append(Counted(fake_server.url, spec.name))
        return made[-1]

    monkeypatch.setattr("fgbench.sweeping.prepared.backend_of", backend_of)
    argv = ["--backend", "fastgen", "--backend", "fastgen-fcfs", *TINY, "--rates", "200,400", "--seeds", 2]
    done = fgbench("sweep", *argv, *options, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    assert [backend.starts for backend in made] == [starts, starts]
    assert not any(backend.running for backend in made)
    (folder,) = find_sweeps(tmp_path)
    assert len(find_runs(folder)) == 8
    assert len(fake_server.bodies) == 8 * (4 + 4)  # warmed up before each point
    logs = sorted(path.name for path in folder.glob("server_*.log"))
    assert logs == ([] if restart else ["server_fastgen-fcfs.log", "server_fastgen.log"])
    assert len(list(folder.glob("*/server.log"))) == (8 if restart else 0)


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_running_servers_by_name_and_a_point_that_fails(
    fake_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unused = "http://127.0.0.1:9"
    argv = ["--backend", f"dead={unused}", "--backend", f"vllm={fake_server.url}/v1", *TINY, "--rates", 200]
    monkeypatch.setattr("fgbench.backends.attached.READY_SECONDS", 0.1)
    done = fgbench("sweep", *argv, "--results", tmp_path)
    assert done.exit_code == 1
    (folder,) = find_sweeps(tmp_path)
    info = read_sweep(folder)
    assert [point["status"] for point in info["points"]] == ["failed", "complete"]
    assert info["status"] == "failed"
    assert "is not ready after 0.1 s: it does not answer" in words(done.output)
    assert f"fgbench sweep --resume {folder}" in words(done.output)
    names = {read_run(path).info["backend"]["name"] for path in find_runs(folder)}
    assert names == {"dead", "vllm"}
    fast = fgbench("sweep", *argv, "--fail-fast", "--results", tmp_path / "fast")
    assert fast.exit_code == 1
    (stopped,) = find_sweeps(tmp_path / "fast")
    assert len(find_runs(stopped)) == 1


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_a_point_starts_when_a_running_server_is_idle(fake_server: Any, tmp_path: Path) -> None:
    """Before both points, the vLLM has requests of another client; the point waits until they end."""
    left = iter([(2, 5), (1, 0), (0, 0), (2, 0), (0, 0)])
    seen: list[tuple[int, tuple[int, int]]] = []
    point = 4 + 4  # requests, with the warm-up

    def vllm() -> tuple[int, int]:
        if len(fake_server.bodies) % point:  # after the warm-up, the counters of the prefix cache are read
            return (0, 0)
        seen.append((len(fake_server.bodies), next(left)))
        return seen[-1][1]

    fake_server.vllm = vllm
    argv = ["--backend", f"vllm={fake_server.url}", *TINY, "--rates", "200,300", "--results", tmp_path]
    assert fgbench("sweep", *argv).exit_code == 0
    assert seen == [(0, (2, 5)), (0, (1, 0)), (0, (0, 0)), (point, (2, 0)), (point, (0, 0))]


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_points_at_a_busy_server_fail_and_a_resumed_sweep_runs_them(
    fake_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgbench.backends.attached.DRAIN_SECONDS", 0.1)
    fake_server.vllm = lambda: (2 if fake_server.bodies else 0, 0)
    argv = ["--backend", f"vllm={fake_server.url}", *TINY, "--rates", "200,300", "--results", tmp_path]
    done = fgbench("sweep", *argv)
    assert done.exit_code == 1, done.output
    assert "still has 2 requests after 0.1 s, and requests of another client" in words(done.output)
    (folder,) = find_sweeps(tmp_path)
    assert [point["status"] for point in read_sweep(folder)["points"]] == ["complete", "failed"]
    assert len(fake_server.bodies) == 4 + 4
    fake_server.vllm = lambda: (0, 0)
    assert fgbench("sweep", "--resume", folder).exit_code == 0
    assert [point["status"] for point in read_sweep(folder)["points"]] == ["complete"] * 2


def test_restart_does_not_work_with_a_running_server(fake_server: Any, tmp_path: Path) -> None:
    argv = ["--backend", fake_server.url, "--restart", *TINY, "--rates", 200, "--results", tmp_path]
    done = fgbench("sweep", *argv)
    assert done.exit_code == 2
    assert "--restart is for servers that the sweep starts" in words(done.stderr)


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_too_many_errors_exit_3_after_all_points_are_run(fake_server: Any, tmp_path: Path) -> None:
    fake_server.misbehave = {9: "crash"}
    table = tmp_path / "t.csv"
    table.write_text("prompt_tokens,output_tokens\n4,5\n4,9\n")
    argv = ["--backend", f"a={fake_server.url}", "--dataset", table, "--num-prompts", 4, "--rates", "300,inf"]
    done = fgbench("sweep", *argv, "--results", tmp_path / "r")
    assert done.exit_code == 3
    (folder,) = find_sweeps(tmp_path / "r")
    assert [point["status"] for point in read_sweep(folder)["points"]] == ["too many errors"] * 2
    assert [point["rate"] for point in read_sweep(folder)["points"]] == [300.0, "inf"]
    allowed = fgbench("sweep", "--resume", folder, "--max-error-rate", 0.5)
    assert allowed.exit_code == 0, allowed.output
    assert len(find_runs(folder)) == 2
