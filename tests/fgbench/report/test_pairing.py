from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fgbench.report.chosen_runs import _is_of, _without_repeats
from fgbench.report.comparison import compare
from fgbench.report.pairing import differences, newest_comparable, without_repeats
from fgbench.results.run import Run

Make = Callable[..., Run]


def test_different_workloads_are_not_compared_and_the_difference_is_described(make_run: Make) -> None:
    runs = [make_run("a"), make_run("b"), make_run("a", num_prompts=5), make_run("a", arrivals="gamma cv=2")]
    comparisons = compare(runs)
    assert [comparison.runs for comparison in comparisons] == [2, 1, 1]
    text = differences(comparison.workload for comparison in comparisons)
    assert text == "number of prompts (4, 5) and arrivals (poisson, gamma cv=2)"


def test_seeds_and_rates_belong_to_one_workload(make_run: Make) -> None:
    (comparison,) = compare([make_run("a", rate, seed=seed) for rate in (1.0, 2.0) for seed in range(3)])
    assert comparison.seeds == [0, 1, 2]
    assert [(point.level, point.seeds) for point in comparison.of("a")] == [
        (1.0, [0, 1, 2]),
        (2.0, [0, 1, 2]),
    ]


def test_runs_of_one_seed_with_other_prompts_or_times_are_not_paired(make_run: Make) -> None:
    """Fingerprints cover the prompts and, for one rate, the arrival times."""
    first, second = make_run("a"), make_run("b", prompts_fingerprint="of another file")
    assert len(compare([first, second])) == 2
    assert (
        differences(c.workload for c in compare([first, second])) == "the prompts or arrival times themselves"
    )
    sent = [
        make_run("a", fingerprint="x"),
        make_run("b", fingerprint="y"),
        make_run("b", 3.0, fingerprint="z"),
    ]
    assert [comparison.runs for comparison in compare(sent)] == [2, 1]


def test_unknown_settings_make_a_workload_different(make_run: Make) -> None:
    runs = [make_run("a", trimmed=True), make_run("b")]
    assert differences(c.workload for c in compare(runs)) == "settings (trimmed true, none)"
    process = make_run("b", arrival_process={"name": "poisson"}, users=1)
    assert len(compare([make_run("a"), process])) == 1  # newer files have more keys for the same workload


def test_a_models_name_and_the_path_of_its_folder_are_the_same_model(make_run: Make) -> None:
    ours, theirs, other = (make_run(name, 1.0) for name in ("fastgen", "vllm", "vllm"))
    theirs.info["model"] = "/models/smollm2-135m"
    other.info["model"] = "/models/smollm2-360m"
    (comparison,) = compare([ours, theirs])
    assert sorted(comparison.labels) == ["fastgen", "vllm"]
    assert len(compare([ours, theirs, other])) == 2


def test_the_newest_workload_is_chosen_and_repeats_are_left_out(make_run: Make) -> None:
    other = make_run("a", num_prompts=7)
    first, second = make_run("a", latency=1.0), make_run("a", latency=2.0)
    killed = make_run("a", status="running")
    other_rate, other_seed = make_run("a", rate=4.0), make_run("a", seed=7)
    nothing = make_run("b", seed=9, records=0)
    chosen = newest_comparable([other, first, second, killed, other_rate, other_seed, nothing])
    assert without_repeats(chosen) == [second, other_rate, other_seed]
    assert newest_comparable([killed]) == [killed]
    assert newest_comparable([nothing]) == []


def test_a_seed_with_other_prompts_belongs_to_an_older_workload(make_run: Make) -> None:
    old, new = make_run("a", prompts_fingerprint="old file"), make_run("b", prompts_fingerprint="new file")
    assert newest_comparable([old, new]) == [new]


def test_a_failed_run_that_was_repeated_counts_once(make_run: Make) -> None:
    failed, again = make_run("a", status="failed", records=2), make_run("a")
    assert without_repeats([failed, again]) == without_repeats([again, failed]) == [again]


def test_attached_servers_are_distinguished_by_their_urls(make_run: Make) -> None:
    """Started servers also have different URLs, but that makes no difference."""
    attached = [make_run("openai", settings={}), make_run("openai", settings={})]
    urls = [run.info["backend"]["url"] for run in attached]
    assert newest_comparable(attached) == attached
    assert compare(attached)[0].labels == sorted(
        (f"openai (url {url})" for url in urls), key=lambda name: name.endswith(f"{urls[0]})")
    )
    started = [make_run("fastgen"), make_run("fastgen")]
    assert without_repeats(started) == started[1:]
    assert sorted(compare(started)[0].labels) == ["fastgen", "fastgen #2"]


def test_two_servers_at_one_url_are_two_columns(make_run: Make) -> None:
    """They are distinguished by what they report about themselves."""
    url = {"url": "http://127.0.0.1:8000"}
    runs = [
        make_run("127.0.0.1:8000", settings={**url, "version": version}) for version in ("0.31.0", "0.32.0")
    ]
    assert without_repeats(runs) == runs
    (comparison,) = compare(runs)
    assert sorted(comparison.labels) == ["127.0.0.1:8000 (version 0.31.0)", "127.0.0.1:8000 (version 0.32.0)"]


def test_repeats_that_are_left_out_are_counted(make_run: Make) -> None:
    """Two servers at one URL that report nothing about themselves look like one, and the user must know."""
    said: list[str] = []
    runs = [make_run("server", settings={}) for _ in range(3)]
    for run in runs:
        run.info["backend"]["url"] = "http://127.0.0.1:8000"
    assert _without_repeats(runs, said.append) == runs[2:]
    assert _without_repeats([make_run("a", status="running"), make_run("a")], said.append)
    (sentence,) = said  # a killed run that was measured again is no repeat
    assert sentence.startswith("Left out: 2 older repeats of the same backend, settings and load.")
    assert "--name" in sentence


@pytest.mark.parametrize(
    ("device", "info", "fits"),
    [
        ("AMD EPYC, 2 threads of 2", {"environment": {"cpu": "AMD EPYC"}}, True),
        ("AMD EPYC 9654, 96 threads of 96", {"environment": {"cpu": "AMD EPYC"}}, False),
        ("AMD EPYC, 2 threads of 2", {}, True),
        ("NVIDIA H100", {"environment": {"cpu": "AMD EPYC"}}, True),
        ("NVIDIA H100", {"environment": {"packages": {"torch": "2.13.0+cpu"}}}, False),
        ("NVIDIA H100", {"backend": {"settings": {"device": "cpu"}}}, False),
        ("AMD EPYC, 2 threads of 2", {"backend": {"settings": {"device": "cuda"}}}, False),
        ("NVIDIA H100", {"backend": {"settings": {"profile": "AMD EPYC, 2 threads of 2, bfloat16"}}}, False),
        (
            "AMD EPYC, 2 threads of 2",
            {"backend": {"settings": {"profile": "AMD EPYC, 2 threads of 2, b"}}},
            True,
        ),
    ],
)
def test_a_profile_fits_the_machine_of_a_run(device: str, info: dict[str, Any], fits: bool) -> None:
    assert _is_of(device, info) is fits
