"""Sampling a server's own figures during a load."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fgbench.backends.gpu_energy import GpuMeter
from fgbench.backends.probe import from_vllm
from fgbench.backends.sampling import ServerWatch, sample
from fgbench.results.server_samples import FILE, hit_shares, per_second, read_samples, series

STATS = {
    "running": 3,
    "waiting": 5,
    "swapped": 1,
    "preemptions": 7,
    "num_device_blocks": 400,
    "free_device_blocks": 100,
    "policy": "fcfs",
    "under_pressure": False,
}
VLLM = """vllm:num_requests_running{engine="0"} 4
vllm:num_requests_waiting 6
vllm:kv_cache_usage_perc 0.25
vllm:num_preemptions_total 2
vllm:prefix_cache_hits_total 30
vllm:prefix_cache_queries_total 90
"""
SGLANG = """sglang:num_running_reqs{model_name="m"} 4
sglang:num_queue_reqs 6
sglang:token_usage 0.5
sglang:generation_tokens_total 100
"""


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server and its pages, which a test sets."""
    pages: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.end_headers()
            self.wfile.write((page if isinstance(page, str) else json.dumps(page)).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}", pages
    made.shutdown()
    made.server_close()


def watched(url: str, path: Path, seconds: float = 0.3) -> list[dict[str, float]]:
    with ServerWatch(url, path / FILE, interval=0.05):
        time.sleep(seconds)
    return read_samples(path)


def test_our_server_is_sampled_by_its_stats(server: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, pages = server
    pages["/stats"] = STATS
    rows = watched(url, tmp_path)
    assert len(rows) >= 2
    expected = {"running": 3.0, "waiting": 5.0, "swapped": 1.0, "preemptions": 7.0, "device_used_share": 0.75}
    assert {key: value for key, value in rows[0].items() if key != "at"} == expected
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)


def test_vllm_is_sampled_by_its_metrics(server: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, pages = server
    pages["/metrics"] = VLLM
    row = watched(url, tmp_path)[0]
    assert (row["running"], row["waiting"], row["device_used_share"]) == (4.0, 6.0, 0.25)
    assert (row["preemptions"], row["hits"], row["looked_up"]) == (2.0, 30.0, 90.0)


def test_sglang_has_other_names() -> None:
    found = sample(from_vllm(SGLANG))
    assert found == {"running": 4.0, "waiting": 6.0, "generated_tokens": 100.0, "device_used_share": 0.5}


def test_a_server_that_reports_nothing_has_no_samples(
    server: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert watched(server[0], tmp_path, 0.1) == []
    assert not (tmp_path / FILE).exists()


def test_a_server_that_stops_answering_leaves_gaps(
    server: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    url, pages = server
    pages["/stats"] = STATS
    with ServerWatch(url, tmp_path / FILE, interval=0.05) as watch:
        time.sleep(0.15)
        pages.clear()
        time.sleep(0.15)
    rows = read_samples(tmp_path)
    assert len(rows) == watch.samples
    assert "running" in rows[0]
    assert set(rows[-1]) == {"at"}


def test_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"at": 0.0, "running": 1}\n{"at": 1.0, "run')
    assert read_samples(tmp_path) == [{"at": 0.0, "running": 1.0}]
    assert read_samples(tmp_path / "nothing") == []


def test_counters_become_rates_and_shares() -> None:
    samples = [
        {"at": 0.0, "preemptions": 2.0, "hits": 10.0, "looked_up": 100.0},
        {"at": 2.0, "preemptions": 6.0, "hits": 40.0, "looked_up": 160.0},
        {"at": 3.0},
        {"at": 4.0, "preemptions": 1.0, "hits": 40.0, "looked_up": 160.0},
    ]
    assert series(samples, "preemptions") == [2.0, 6.0, None, 1.0]
    assert per_second(samples, "preemptions") == [None, 2.0, None, None]
    assert hit_shares(samples) == [None, 0.5, None, None]
    assert per_second([], "preemptions") == hit_shares([]) == []


class FakeNvml(ModuleType):
    """Two GPUs; each read adds 5 J to the energy of each."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, energy: bool = True, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.has_energy, self.driver, self.reads = energy, driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 100_000 + handle

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if not self.has_energy:
            raise self.NVMLError
        self.reads += 1
        return 2500 * self.reads


def test_the_gpus_are_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    with ServerWatch("http://127.0.0.1:1", tmp_path / FILE, interval=0.02, gpus=GpuMeter()) as watch:
        time.sleep(0.1)
    rows = read_samples(tmp_path)
    assert rows[0]["gpu_power_w"] == pytest.approx(200.001)
    assert watch.gpu_energy == pytest.approx(rows[-1]["gpu_energy_j"] - rows[0]["gpu_energy_j"])
    assert watch.gpu_energy > 0.0


@pytest.mark.parametrize(
    ("nvml", "known"),
    [(FakeNvml(energy=False), {"gpu_power_w"}), (FakeNvml(driver=False), set()), (None, set())],
)
def test_what_nvml_does_not_report_is_missing(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None, known: set[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: the import fails
    assert set(GpuMeter().read()) == known


def test_a_figure_that_is_no_number_is_missing(tmp_path: Path) -> None:
    assert sample({"running": float("nan"), "waiting": 2}) == {"waiting": 2.0}
    (tmp_path / FILE).write_text('{"at": 0.0, "running": NaN, "waiting": 1}\n')
    assert read_samples(tmp_path) == [{"at": 0.0, "waiting": 1.0}]


class SteadyGpu(GpuMeter):
    """A GPU that uses 400 W."""

    def read(self) -> dict[str, float]:
        return {"gpu_energy_j": 400.0 * time.monotonic()}


def test_the_energy_of_a_short_load_is_complete(tmp_path: Path) -> None:
    with ServerWatch("http://127.0.0.1:1", tmp_path / FILE, interval=60.0, gpus=SteadyGpu()) as watch:
        time.sleep(0.3)
    assert watch.gpu_energy == pytest.approx(120.0, rel=0.5)
