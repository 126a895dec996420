"""The runner of sweeps with fake backends: what it starts, measures, skips and records."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fgbench.backends.attached import Attached
from fgbench.backends.backend import BackendError, Keep, Outcome, ReadyServer, identity_of
from fgbench.exit_codes import CLIENT_LIMIT, DONE, FAILED, INTERRUPTED, TOO_MANY_ERRORS
from fgbench.exit_status import ExitStatus, worst
from fgbench.live.display import Quiet
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.slo import parse_slo
from fgbench.results.run import read_info
from fgbench.spec.load import Load
from fgbench.sweeping.estimate import SweepProgress
from fgbench.sweeping.folder import SweepFolder, read_sweep
from fgbench.sweeping.plan import SweepPlan
from fgbench.sweeping.runner import SweepRunner
from fgbench.sweeping.search import Search
from fgbench.sweeping.sweep_tables import answer, rates_by_seed, results_table, search_tables
from fgbench.workload.datasets import Synthetic
from fgbench.workload.lengths import Between
from fgbench.workload.workload import Workload

REQUESTS = 4
BUSY = {
    "seconds": 10.0,
    "other_cores": 1.0,
    "peak_cores": 1.0,
    "busy_share": 1.0,
    "stolen_cores": 0.0,
    "memory_stalled_share": 0.0,
    "mhz": None,
    "programs": [["other", 1.0]],
    "busy": True,
}
"""The account of a machine on which another program ran."""
DATASET = Synthetic(Between(4, 4), Between(2, 2))


def normally(load: Load) -> tuple[str, float]:
    """Return the status, and the seconds per token, which grow with the rate."""
    return "complete", load.rate / 10.0


class FakeBackend(Attached):
    """A backend with synthetic records. ``behave`` may raise."""

    def __init__(self, name: str, behave: Callable[[Load], tuple[str, float]] = normally) -> None:
        super().__init__("http://fake:1", name=name)
        self.behave = behave
        self.measured: list[tuple[float, int]] = []
        self.closed = 0

    def start(self, log: Path, report: Any) -> ReadyServer:
        return ReadyServer("http://fake:1", "m")

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Any) -> Outcome:
        self.measured.append((load.rate, load.seed))
        status, per_token = self.behave(load)
        for i in range(REQUESTS):
            keep(record(i, per_token, status == "errors"))
        error = {"error": "the server died: oops"} if status == "failed" else {}
        return Outcome("complete" if status == "errors" else status, error)

    def close(self) -> None:
        self.closed += 1


def record(index: int, per_token: float, error: bool) -> RequestRecord:
    end = index + 2 * per_token
    return RequestRecord(
        index=index,
        scheduled=float(index),
        sent=float(index),
        prompt_tokens=4,
        asked_tokens=2,
        output_tokens=2,
        first_token=index + per_token,
        last_token=end,
        token_times=(index + per_token, end),
        finished=end,
        error="http 500: no" if error else None,
    )


class Sweep:
    """A sweep of fake backends at two rates with two seeds."""

    def __init__(
        self, root: Path, *systems: FakeBackend, folder: SweepFolder | None = None, **options: Any
    ) -> None:
        self.systems = {system.name: system for system in systems}
        identities = {name: identity_of(system) for name, system in self.systems.items()}
        self.plan = SweepPlan(identities, Load(num_prompts=REQUESTS), {0: "w0", 1: "w1"})
        self.folder = folder or SweepFolder.create(root, {}, "plan", self.plan)
        self.runner = SweepRunner(
            self.folder,
            self.plan,
            self.systems,
            DATASET,
            Quiet(),
            SweepProgress(),
            expected_seconds=lambda point: 1.0,
            options=lambda point: {"rate": point.rate},
            **{"max_error_rate": 0.01, **options},
        )
        self.points = list(self.plan.grid((1.0, 2.0), (0, 1)))

    def codes(self) -> list[int]:
        return [result.exit.code for result in self.runner.grid(self.points)]

    def statuses(self) -> list[str]:
        return [entry["status"] for entry in read_sweep(self.folder.path)["points"]]


def again(sweep: Sweep, *systems: FakeBackend, **options: Any) -> Sweep:
    """Open the folder again, like a new process does."""
    return Sweep(Path(), *systems, folder=SweepFolder.open(sweep.folder.path), **options)


def test_each_point_is_measured_once_and_each_backend_closed(tmp_path: Path) -> None:
    a, b = FakeBackend("a"), FakeBackend("b")
    sweep = Sweep(tmp_path, a, b)
    assert sweep.codes() == [DONE] * 8
    grid = [(1.0, 0), (2.0, 0), (1.0, 1), (2.0, 1)]
    assert a.measured == b.measured == grid
    assert a.closed == b.closed == 1
    info = read_sweep(sweep.folder.path)
    for entry, point in zip(info["points"], sweep.points, strict=True):
        assert entry["status"] == "complete"
        assert read_info(sweep.folder.path / entry["run"])["point"] == point.fingerprint
    other = again(sweep, FakeBackend("a"), FakeBackend("b"))
    assert other.codes() == [DONE] * 8
    assert [system.measured for system in other.systems.values()] == [[], []]


def test_a_backend_is_closed_before_another_one_runs(tmp_path: Path) -> None:
    log: list[str] = []

    class Logging(FakeBackend):
        def start(self, log_path: Path, report: Any) -> ReadyServer:
            log.append(self.name)
            return super().start(log_path, report)

        def close(self) -> None:
            log.append(self.name.upper())

    sweep = Sweep(tmp_path, Logging("a"), Logging("b"))
    sweep.points = list(sweep.plan.grid((1.0, 2.0), (0, 1), "interleaved"))
    assert sweep.codes() == [DONE] * 8
    assert "".join(log) == "aAbbBaAbBaaAbB"


@pytest.mark.slow
def test_failed_points_are_recorded_and_run_again_on_resume(tmp_path: Path) -> None:
    def fails(load: Load) -> tuple[str, float]:
        if load.rate == 2.0 and load.seed == 0:
            raise BackendError("no warm-up request was answered")
        kinds = {(1.0, 0): "complete", (1.0, 1): "failed", (2.0, 1): "errors"}
        return kinds[load.rate, load.seed], 0.1

    sweep = Sweep(tmp_path, FakeBackend("a", fails), FakeBackend("b"))
    assert sweep.codes() == [DONE, FAILED, FAILED, TOO_MANY_ERRORS] + [DONE] * 4
    assert sweep.statuses()[:4] == ["complete", "failed", "failed", "too many errors"]
    entries = read_sweep(sweep.folder.path)["points"]
    assert entries[1]["error"] == "no warm-up request was answered"
    assert read_info(sweep.folder.path / entries[1]["run"])["status"] == "failed"
    assert "the server died: oops" in entries[2]["error"]
    working = FakeBackend("a")
    other = again(sweep, working, FakeBackend("b"))
    assert other.codes() == [DONE] * 8
    assert working.measured == [(2.0, 0), (1.0, 1), (2.0, 1)]
    assert other.statuses() == ["complete"] * 8
    assert not any("error" in entry for entry in read_sweep(sweep.folder.path)["points"])


def test_a_higher_error_rate_can_be_allowed_on_resume(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, FakeBackend("a", lambda load: ("errors", 0.1)))
    assert sweep.codes() == [TOO_MANY_ERRORS] * 4
    system = FakeBackend("a")
    assert again(sweep, system, max_error_rate=1.0).codes() == [DONE] * 4
    assert system.measured == []


def test_fail_fast_stops_at_the_first_failure(tmp_path: Path) -> None:
    a, b = (
        FakeBackend("a", lambda load: ("failed" if load.rate == 2.0 else "complete", 0.1)),
        FakeBackend("b"),
    )
    sweep = Sweep(tmp_path, a, b, fail_fast=True)
    assert sweep.codes() == [DONE, FAILED]
    assert a.closed == 1
    assert b.measured == []
    assert sweep.statuses() == ["complete", "failed"] + ["pending"] * 6


@pytest.mark.parametrize("raised", [False, True], ids=["in the load", "before the load"])
def test_an_interrupted_point_is_saved_and_the_backend_closed(tmp_path: Path, raised: bool) -> None:
    def interrupted(load: Load) -> tuple[str, float]:
        if load.rate != 2.0:
            return "complete", 0.1
        if raised:
            raise KeyboardInterrupt
        return "interrupted", 0.1

    a = FakeBackend("a", interrupted)
    sweep = Sweep(tmp_path, a)

    def run() -> None:
        with sweep.folder.at_work():
            sweep.runner.grid(sweep.points)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert a.closed == 1
    info = read_sweep(sweep.folder.path)
    assert info["status"] == "interrupted"
    assert sweep.statuses() == ["complete", "interrupted", "pending", "pending"]
    assert read_info(sweep.folder.path / info["points"][1]["run"])["status"] == "interrupted"


def test_a_search_uses_means_over_seeds_and_can_be_resumed(tmp_path: Path) -> None:
    """With one seed, seconds per token are rate / 10, with the other rate / 5; the mean is 0.3 at rate 2."""

    def by_seed(load: Load) -> tuple[str, float]:
        return "complete", load.rate / (10.0 if load.seed == 0 else 5.0)

    slo, search = parse_slo("normalized_latency<0.3"), Search(0.7, tolerance=0.05)
    system = FakeBackend("a", by_seed)
    sweep = Sweep(tmp_path, system)
    found = sweep.runner.find_rate("a", search, slo, (0, 1))
    bracket = found.bracket
    assert bracket.met is not None
    assert bracket.missed is not None
    assert bracket.met <= 2.0 < bracket.missed
    assert bracket.within(0.05)
    assert (found.code, found.stopped) == (DONE, "")
    assert len(system.measured) == 2 * len(found.tried)
    saved = read_sweep(sweep.folder.path)["searches"]["a"]
    assert (saved["met"], saved["missed"], saved["rate"]) == (bracket.met, bracket.missed, bracket.rate)
    assert saved["probes"] == found.tried
    second = FakeBackend("a", by_seed)
    assert again(sweep, second).runner.find_rate("a", search, slo, (0, 1)) == found
    assert second.measured == []  # all results were in the folder
    finer = FakeBackend("a", by_seed)
    closer = again(sweep, finer).runner.find_rate("a", Search(0.7, tolerance=0.02), slo, (0, 1))
    assert closer.tried[: len(found.tried)] == found.tried
    assert len(finer.measured) == 2 * (len(closer.tried) - len(found.tried)) > 0


def test_a_search_without_a_bracket_fails(tmp_path: Path) -> None:
    slo = parse_slo("normalized_latency<0.3")
    never, always = (
        FakeBackend("never", lambda load: ("complete", 9.0)),
        FakeBackend("always", lambda load: ("complete", 0.1)),
    )
    sweep = Sweep(tmp_path, never, always)
    missed = sweep.runner.find_rate("never", Search(1.0), slo, (0,))
    assert (missed.bracket.met, missed.bracket.missed, missed.code) == (None, 1 / 16, FAILED)
    met = sweep.runner.find_rate("always", Search(1.0), slo, (0,))
    assert (met.bracket.met, met.bracket.missed, met.code) == (64.0, None, FAILED)


def test_too_many_errors_count_as_missed_and_a_dead_server_ends_the_search(tmp_path: Path) -> None:
    slo = parse_slo("normalized_latency<0.3")
    limited = FakeBackend("limited", lambda load: ("errors" if load.rate > 3.0 else "complete", 0.1))
    dying = FakeBackend("dying", lambda load: ("failed" if load.rate > 3.0 else "complete", 0.1))
    sweep = Sweep(tmp_path, limited, dying)
    found = sweep.runner.find_rate("limited", Search(1.0), slo, (0,))
    assert found.code == DONE
    assert found.bracket.rate == pytest.approx(3.0, rel=0.05)
    stopped = sweep.runner.find_rate("dying", Search(1.0), slo, (0,))
    assert stopped.code == FAILED
    assert stopped.stopped == "at 4/s: the server died: oops"
    assert [probe["rate"] for probe in stopped.tried] == [1.0, 2.0]


def test_the_worst_exit_code_is_chosen() -> None:
    assert worst([]) == DONE
    assert worst([DONE, CLIENT_LIMIT]) == CLIENT_LIMIT
    assert worst([CLIENT_LIMIT, TOO_MANY_ERRORS, DONE]) == TOO_MANY_ERRORS
    assert worst([TOO_MANY_ERRORS, FAILED]) == FAILED
    assert worst([FAILED, INTERRUPTED]) == INTERRUPTED
    assert [ExitStatus(code).measured for code in (DONE, CLIENT_LIMIT, FAILED, TOO_MANY_ERRORS)] == [
        True,
        True,
        False,
        False,
    ]


class Queueing(FakeBackend):
    """Answers one request of two tokens after the other, each in a third of a second."""

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Any) -> Outcome:
        free = 0.0
        for i in range(60):
            at = i / load.rate
            free = max(free, at) + 1 / 3
            times = (free - 1 / 6, free)
            keep(RequestRecord(i, at, at, 4, 2, 2, times[0], times[1], times, finished=free))
        return Outcome("complete")


def test_a_rate_above_capacity_misses_the_slo_unless_it_is_accepted(tmp_path: Path) -> None:
    """With few requests, even 64 times the capacity meets a loose SLO, so an answer of 60/s means nothing."""
    slo = parse_slo("jct<1000")
    sweep = Sweep(tmp_path / "a", Queueing("a"))
    found = sweep.runner.find_rate("a", Search(1.0, tolerance=0.02), slo, (0,))
    assert found.code == DONE
    assert found.bracket.rate == pytest.approx(3.3, abs=0.2)  # 3/s, and the 10% that are not judged
    assert {probe["rate"]: probe["overloaded"] for probe in found.tried}[4.0] is True
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(search_tables({"a": found}, slo, 1))
    text = console.export_text()
    assert "4/s ▲" in text
    assert "how much it depends on the seed is not known" in text
    papers = Sweep(tmp_path / "b", Queueing("a")).runner.find_rate(
        "a", Search(1.0), slo, (0,), even_above_capacity=True
    )
    assert (papers.bracket.met, papers.bracket.missed) == (64.0, None)


def test_seeds_give_the_found_rate_an_interval(tmp_path: Path) -> None:
    """Seconds per token are rate / 10, / 11 and / 12: the seeds' own rates are 3.0, 3.3 and 3.6/s."""
    backend = FakeBackend("a", lambda load: ("complete", load.rate / (10.0 + load.seed)))
    sweep = Sweep(tmp_path, backend)
    object.__setattr__(sweep.plan, "workloads", {0: "w0", 1: "w1", 2: "w2"})
    slo = parse_slo("normalized_latency<0.3")
    found = sweep.runner.find_rate("a", Search(1.0), slo, (0, 1, 2))
    assert rates_by_seed(found, slo) == pytest.approx({"0": 3.0, "1": 3.3, "2": 3.6})
    assert "95% interval over 3 seeds: 2.6" in answer("a", found, slo)


class Rejecting(FakeBackend):
    """Answers fast, but rejects a quarter of the requests above 3/s."""

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Any) -> Outcome:
        records = [record(i, 0.01, False) for i in range(REQUESTS)]
        if load.rate > 3.0:
            records[0] = RequestRecord(0, 0.0, 0.0, 4, 2, finished=0.01, rejected="http 429: busy")
        for each in records:
            keep(each)
        return Outcome("complete")


def test_a_rate_at_which_requests_are_rejected_misses_the_slo(tmp_path: Path) -> None:
    """It misses even if the other requests are answered fast."""
    slo = parse_slo("jct<5")
    sweep = Sweep(tmp_path, Rejecting("a"))
    found = sweep.runner.find_rate("a", Search(1.0, tolerance=0.2), slo, [0])
    assert (found.bracket.met, found.bracket.missed) == (2.828, 4.0)
    assert (found.stopped, found.code) == ("", DONE)
    by_rate = {probe["rate"]: probe for probe in found.tried}
    assert (by_rate[4.0]["met"], by_rate[4.0]["rejected"]) == (False, 0.25)
    assert (by_rate[2.0]["met"], by_rate[2.0]["rejected"]) == (True, 0.0)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(search_tables({"a": found}, slo, 1))
    assert "25%" in console.export_text()
    (result,) = sweep.runner.grid([sweep.plan.point("a", 4.0, 0)])
    assert result.exit.code == DONE  # a rejection is not an error
    console.print(results_table([result]))
    text = console.export_text()
    assert "rejected" in text
    assert "25%" in text
    assert "◆" not in text
    console.print(results_table([replace(result, info={**result.info, "machine": BUSY})]))
    assert "◆ other programs took part of the machine" in console.export_text()


def test_rates_are_not_left_out_if_the_capacity_is_not_known(tmp_path: Path) -> None:
    a, b = FakeBackend("a"), FakeBackend("b")
    sweep = Sweep(tmp_path, a, b, stop_when_saturated=True)
    sweep.points = list(sweep.plan.grid((1.0, 2.0), (0, 1)))
    assert sweep.codes() == [DONE] * 8  # four requests are too few to know
    entries = read_sweep(sweep.folder.path)["points"]
    assert {entry["status"] for entry in entries} == {"complete"}


def test_the_rates_above_the_capacity_are_left_out_for_that_backend_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = FakeBackend("a"), FakeBackend("b")
    sweep = Sweep(tmp_path, a, b, stop_when_saturated=True)
    sweep.points = list(sweep.plan.grid((1.0, 2.0, 3.0), (0, 1)))
    real = SweepRunner._measure

    def measure(runner: SweepRunner, point: Any) -> Any:
        result = real(runner, point)
        above = point.backend == "a" and point.rate >= 2.0
        assert result.summary is not None
        return replace(result, summary=replace(result.summary, overloaded=above))

    monkeypatch.setattr(SweepRunner, "_measure", measure)
    # Backend a is above capacity at 2/s with seed 0. So 3/s is left out, for seed 1 too; 1/s and 2/s are not.
    assert sweep.codes() == [DONE] * (4 + 6)
    assert a.measured == [(1.0, 0), (2.0, 0), (1.0, 1), (2.0, 1)]
    assert len(b.measured) == 6
    left_out = [entry for entry in read_sweep(sweep.folder.path)["points"] if entry["status"] == "left out"]
    assert all(entry["backend"] == "a" and entry["rate"] == 3.0 for entry in left_out)
    assert left_out
