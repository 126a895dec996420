from __future__ import annotations

import io
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fgbench.client.record import RequestRecord
from fgbench.report.compare_table import comparison_json, comparison_tables
from fgbench.report.comparison import compare, differences, newest_comparable
from fgbench.report.plots import plot_latency_over_rate
from fgbench.results.run import Run

PORTS = count(40000)
"""Every run's server listens elsewhere; runs that repeat each other are told by their fingerprint."""


def record(index: int, latency: float) -> RequestRecord:
    scheduled = 0.5 * index
    times = (scheduled + latency / 2, scheduled + latency)
    return RequestRecord(index, scheduled, scheduled, 8, 2, 2, times[0], times[1], times, finished=times[1])


def fake_run(
    backend: str,
    rate: float | str = 2.0,
    latency: float = 1.0,
    *,
    seed: int = 0,
    num_prompts: int = 4,
    status: str = "complete",
    settings: dict[str, Any] | None = None,
    path: str = "run",
    records: int = 4,
) -> Run:
    info = {
        "status": status,
        "fingerprint": f"{backend} {settings} {rate} {seed} {num_prompts}",
        "model": "smollm2-135m",
        "backend": {
            "name": backend,
            "url": f"http://127.0.0.1:{next(PORTS)}",
            "settings": {"seed": 0} if settings is None else settings,
        },
        "workload": {
            "dataset": "synthetic",
            "num_prompts": num_prompts,
            "rate": rate,
            "seed": seed,
            "arrivals": "poisson",
            "prompts_fingerprint": f"{seed}-{num_prompts}",
        },
    }
    return Run(Path(path), info, tuple(record(i, latency) for i in range(records)))


def test_ratios_are_taken_at_the_same_rate_only() -> None:
    runs = [
        fake_run("fastgen-fcfs", 1.0, latency=2.0),
        fake_run("fastgen", 1.0, latency=1.0),
        fake_run("fastgen-fcfs", 2.0, latency=8.0),
        fake_run("fastgen", 2.0, latency=2.0),
        fake_run("fastgen", 3.0, latency=2.0),
    ]
    (comparison,) = compare(runs)
    assert comparison.baseline == "fastgen-fcfs"
    assert comparison.rates == [1.0, 2.0, 3.0]
    assert comparison.labels == ["fastgen", "fastgen-fcfs"]
    slow, fast, alone = comparison.at(1.0)[0], comparison.at(2.0)[0], comparison.at(3.0)[0]
    assert comparison.ratio(slow, "jct", "mean") == pytest.approx(0.5)
    assert comparison.ratio(fast, "normalized_latency", "p99") == pytest.approx(0.25)
    assert comparison.ratio(alone, "jct", "mean") is None
    assert comparison.ratio(comparison.at(1.0)[1], "jct", "mean") is None  # the baseline itself


def test_different_workloads_are_kept_apart_and_the_difference_is_said() -> None:
    runs = [fake_run("a", seed=0), fake_run("b", seed=0), fake_run("a", seed=1, num_prompts=5)]
    comparisons = compare(runs)
    assert [len(comparison.entries) for comparison in comparisons] == [2, 1]
    said = differences(comparison.workload for comparison in comparisons)
    assert said == "number of prompts (4, 5) and seed (0, 1)"


def test_a_model_is_the_same_by_its_name_and_by_the_path_of_its_folder() -> None:
    ours, theirs, other = (fake_run(name, 1.0) for name in ("fastgen", "vllm", "vllm"))
    theirs.info["model"] = "/models/smollm2-135m"
    other.info["model"] = "/models/smollm2-360m"
    (comparison,) = compare([ours, theirs])
    assert sorted(comparison.labels) == ["fastgen", "vllm"]
    assert len(compare([ours, theirs, other])) == 2


def test_one_backend_with_other_settings_is_labelled_by_what_differs() -> None:
    runs = [
        fake_run("fastgen", settings={"max_batch_size": 8, "block_size": 16}),
        fake_run("fastgen", settings={"max_batch_size": 16, "block_size": 16}),
        fake_run("fastgen", settings={"max_batch_size": 16, "block_size": 16}),
    ]
    (comparison,) = compare(runs)
    assert [entry.label for entry in comparison.entries] == [
        "fastgen (max_batch_size 8)",
        "fastgen (max_batch_size 16)",
        "fastgen (max_batch_size 16) #2",
    ]


def test_the_baseline_is_a_name_or_a_folder_and_never_a_guess(tmp_path: Path) -> None:
    runs = [fake_run("a"), fake_run("b", path=str(tmp_path))]
    assert compare(runs)[0].baseline == "a"
    assert compare(runs, "b")[0].baseline == "b"
    assert compare(runs, str(tmp_path))[0].baseline == "b"
    with pytest.raises(ValueError, match="no run is called c; choose the baseline among a, b"):
        compare(runs, "c")


def test_without_arguments_the_newest_workload_is_taken_and_repeats_are_dropped() -> None:
    old_seed = fake_run("a", seed=7)
    first, second = fake_run("a", latency=1.0), fake_run("a", latency=2.0)
    killed = fake_run("a", status="running")
    other_rate = fake_run("a", rate=4.0)
    nothing = fake_run("b", seed=9, records=0)
    assert newest_comparable([old_seed, first, second, killed, other_rate, nothing]) == [second, other_rate]
    assert newest_comparable([killed]) == [killed]
    assert newest_comparable([nothing]) == []


def test_servers_attached_to_are_told_apart_by_their_urls() -> None:
    """Started ones too listen at ever new URLs, which is no difference to speak of."""
    attached = [fake_run("openai", settings={}), fake_run("openai", settings={})]
    urls = [run.info["backend"]["url"] for run in attached]
    assert newest_comparable(attached) == attached
    assert [entry.label for entry in compare(attached)[0].entries] == [f"openai (url {url})" for url in urls]
    started = [fake_run("fastgen"), fake_run("fastgen")]
    assert newest_comparable(started) == started[1:]
    assert [entry.label for entry in compare(started)[0].entries] == ["fastgen", "fastgen #2"]


def test_the_table_shows_figures_ratios_marks_and_says_what_they_mean() -> None:
    from rich.console import Console

    runs = [
        fake_run("fastgen-fcfs", "inf", latency=2.0),
        fake_run("fastgen", "inf", latency=1.0, status="running", records=3),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    (comparison,) = compare(runs)
    console.print(comparison_tables(comparison))
    text = console.export_text()
    for expected in ("all requests at once", "0.50x", "3 of 4", "▲ above capacity", "◌ not a complete run"):
        assert expected in text
    data = json.loads(json.dumps(comparison_json(comparison), allow_nan=False))
    assert data["runs"][0]["ratios"]["jct"]["mean"] == pytest.approx(0.5)
    assert data["runs"][0]["rate"] == "inf"
    assert not data["runs"][0]["complete"]


def test_narrow_tables_fold_and_lose_no_digit() -> None:
    from rich.console import Console

    runs = [fake_run(f"backend-{n}", latency=1.2345 + n) for n in range(6)]
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(comparison_tables(compare(runs)[0]))
    assert "…" not in console.export_text()


def test_plots_are_written_for_finite_rates_of_complete_runs(tmp_path: Path) -> None:
    (comparison,) = compare([fake_run("a", 1.0), fake_run("a", 2.0, 20.0), fake_run("b", 1.0)])
    png, pdf = plot_latency_over_rate(comparison, tmp_path / "new" / "plot_r0.5")
    assert png.name == "plot_r0.5.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    (at_once,) = compare([fake_run("a", "inf"), fake_run("b", 1.0, status="running")])
    assert plot_latency_over_rate(at_once, tmp_path / "none") == []
