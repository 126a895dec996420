from __future__ import annotations

from collections.abc import Callable

from fgbench.report.comparison import compare
from fgbench.report.pairing import differences, newest_comparable, without_repeats
from fgbench.results.run import Run

Make = Callable[..., Run]


def test_different_workloads_are_kept_apart_and_the_difference_is_said(make_run: Make) -> None:
    runs = [make_run("a"), make_run("b"), make_run("a", num_prompts=5), make_run("a", arrivals="gamma cv=2")]
    comparisons = compare(runs)
    assert [comparison.runs for comparison in comparisons] == [2, 1, 1]
    said = differences(comparison.workload for comparison in comparisons)
    assert said == "number of prompts (4, 5) and arrivals (poisson, gamma cv=2)"


def test_seeds_and_rates_are_one_workload(make_run: Make) -> None:
    (comparison,) = compare([make_run("a", rate, seed=seed) for rate in (1.0, 2.0) for seed in range(3)])
    assert comparison.seeds == [0, 1, 2]
    assert [(point.level, point.seeds) for point in comparison.of("a")] == [
        (1.0, [0, 1, 2]),
        (2.0, [0, 1, 2]),
    ]


def test_runs_of_one_seed_that_were_sent_something_else_are_not_paired(make_run: Make) -> None:
    """By their fingerprints: of the prompts, and at one rate of the arrival times."""
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


def test_what_is_not_known_of_a_workload_tells_it_apart(make_run: Make) -> None:
    runs = [make_run("a", trimmed=True), make_run("b")]
    assert differences(c.workload for c in compare(runs)) == "settings (trimmed true, none)"
    process = make_run("b", arrival_process={"name": "poisson"}, users=1)
    assert len(compare([make_run("a"), process])) == 1  # newer files say more of the same


def test_a_model_is_the_same_by_its_name_and_by_the_path_of_its_folder(make_run: Make) -> None:
    ours, theirs, other = (make_run(name, 1.0) for name in ("fastgen", "vllm", "vllm"))
    theirs.info["model"] = "/models/smollm2-135m"
    other.info["model"] = "/models/smollm2-360m"
    (comparison,) = compare([ours, theirs])
    assert sorted(comparison.labels) == ["fastgen", "vllm"]
    assert len(compare([ours, theirs, other])) == 2


def test_without_arguments_the_newest_workload_is_taken_and_repeats_are_dropped(make_run: Make) -> None:
    other = make_run("a", num_prompts=7)
    first, second = make_run("a", latency=1.0), make_run("a", latency=2.0)
    killed = make_run("a", status="running")
    other_rate, other_seed = make_run("a", rate=4.0), make_run("a", seed=7)
    nothing = make_run("b", seed=9, records=0)
    chosen = newest_comparable([other, first, second, killed, other_rate, other_seed, nothing])
    assert chosen == [second, other_rate, other_seed]
    assert newest_comparable([killed]) == [killed]
    assert newest_comparable([nothing]) == []


def test_a_seed_that_was_sent_something_else_before_is_an_older_workload(make_run: Make) -> None:
    old, new = make_run("a", prompts_fingerprint="old file"), make_run("b", prompts_fingerprint="new file")
    assert newest_comparable([old, new]) == [new]


def test_a_point_that_failed_and_was_measured_again_counts_once(make_run: Make) -> None:
    failed, again = make_run("a", status="failed", records=2), make_run("a")
    assert without_repeats([failed, again]) == without_repeats([again, failed]) == [again]


def test_servers_attached_to_are_told_apart_by_their_urls(make_run: Make) -> None:
    """Started ones too listen at ever new URLs, which is no difference to speak of."""
    attached = [make_run("openai", settings={}), make_run("openai", settings={})]
    urls = [run.info["backend"]["url"] for run in attached]
    assert newest_comparable(attached) == attached
    assert compare(attached)[0].labels == sorted(
        (f"openai (url {url})" for url in urls), key=lambda name: name.endswith(f"{urls[0]})")
    )
    started = [make_run("fastgen"), make_run("fastgen")]
    assert newest_comparable(started) == started[1:]
    assert sorted(compare(started)[0].labels) == ["fastgen", "fastgen #2"]
