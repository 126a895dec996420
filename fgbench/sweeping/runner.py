"""Runs a sweep: measures each point, or takes its result from the folder. A failed point does not stop it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fgbench.backends.backend import Backend, BackendError, Display
from fgbench.benchmark import execute_run
from fgbench.exit_codes import DONE, FAILED, INTERRUPTED, TOO_MANY_ERRORS
from fgbench.exit_status import ExitStatus, exit_status_of, worst
from fgbench.metrics.accounts import analytic_device
from fgbench.metrics.metric import metric_called
from fgbench.metrics.slo import SLO, rejects_too_many
from fgbench.metrics.summary import Summary
from fgbench.report.marks import CACHED, Mark, marks_of
from fgbench.sweeping.estimate import SweepProgress
from fgbench.sweeping.folder import SweepFolder
from fgbench.sweeping.plan import SweepPlan, SweepPoint
from fgbench.sweeping.search import Bracket, Probe, Search
from fgbench.workload.datasets import Dataset
from fgengine.units import clock, percent, seconds


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one point."""

    point: SweepPoint
    exit: ExitStatus
    summary: Summary | None
    """None if the run ended before it had one."""
    run: Path | None
    """Run folder; None if there is none."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Content of run.json; empty if there is none."""

    @property
    def marks(self) -> dict[Mark, str]:
        """The marks of the run with their details; none if it has no figures."""
        return {} if self.summary is None else marks_of(self.info, self.summary)

    @property
    def analytic_device(self) -> str | None:
        """Name of the device whose step times were computed from published figures, or None."""
        return analytic_device(self.info)


@dataclass(frozen=True, slots=True)
class RateSearchResult:
    """The result of a search for the highest rate."""

    bracket: Bracket
    tried: list[dict[str, Any]]
    """For each probe: ``rate``, ``figures`` (means over the seeds, by bound), ``by_seed`` (the figures of
    each seed, by bound), ``met``, ``overloaded``, ``cached``, ``rejected`` (share of the requests)."""
    codes: tuple[int, ...]
    """Exit codes of the runs."""
    stopped: str = ""
    """Why the search stopped early; empty if it did not."""

    @property
    def code(self) -> int:
        """Exit code of the search.

        A search that stopped early or found no bracket has failed. Too many errors at a rate are no failure:
        the rate counts as missed.
        """
        if self.stopped or not self.bracket.found:
            return FAILED
        return worst([code for code in self.codes if code != TOO_MANY_ERRORS])


class SweepRunner:
    """Measures the points of a sweep."""

    def __init__(
        self,
        folder: SweepFolder,
        plan: SweepPlan,
        backends: Mapping[str, Backend],
        dataset: Dataset,
        display: Display,
        total: SweepProgress,
        *,
        expected_seconds: Callable[[SweepPoint], float | None],
        options: Callable[[SweepPoint], Mapping[str, Any]],
        max_error_rate: float,
        restart: bool = False,
        fail_fast: bool = False,
        stop_when_saturated: bool = False,
    ) -> None:
        """Set up the runner.

        Args:
            folder: Where results are saved.
            plan: Makes the points.
            backends: Backends by label.
            dataset: Source of the requests.
            display: Shows progress.
            total: Progress of the sweep.
            expected_seconds: Returns the estimated seconds of a point; None if unknown.
            options: Returns the options with which ``fgbench run`` repeats a point.
            max_error_rate: Largest share of failed requests of a valid run.
            restart: Start a new server for each point, which logs into its run's folder. Otherwise points of
                one backend in a row share a server, which logs to ``server_<label>.log`` in the sweep's
                folder.
            fail_fast: Stop after the first point that fails.
            stop_when_saturated: Leave out the higher rates of a backend once a rate is above its capacity.
        """
        self._folder = folder
        self._plan = plan
        self._backends = backends
        self._dataset = dataset
        self._display = display
        self._total = total
        self._expected = expected_seconds
        self._options = options
        self._max_error_rate = max_error_rate
        self._restart = restart
        self._fail_fast = fail_fast
        self._stop_when_saturated = stop_when_saturated

    def grid(self, points: Sequence[SweepPoint]) -> list[Result]:
        """Measure all points that have no result yet, in their order, and return all results.

        Only one backend runs at a time. It is closed when a point of another one follows.

        With ``fail_fast``, it stops after the first point that fails. With ``stop_when_saturated``, points
        above a backend's capacity are left out of the results, and sweep.json says so.

        Raises:
            KeyboardInterrupt: the user interrupted; the current point is saved as interrupted.
        """
        self._folder.add(points, self._max_error_rate)
        results: list[Result] = []
        left = [point for point in points if self.known(point) is None]
        count = len(left)
        saturated: dict[str, float] = {}
        with ExitStack() as running:
            label = None
            for point in points:
                result = self.known(point)
                if result is None and point.rate > saturated.get(point.backend, math.inf):
                    left.remove(point)
                    self._folder.mark(point, "left out", error=f"{point.backend} was above capacity before")
                    self._display.report(f"  {point} is left out: a lower rate was above capacity")
                    continue
                if result is None:
                    if point.backend != label:
                        running.close()
                        label = point.backend
                        running.enter_context(self._running(label))
                    left.remove(point)
                    after = [self._expected(other) for other in left]
                    ended = count - len(left) - 1
                    place = f"point {ended + 1} of {count}"
                    self._total.begin(place, str(point), ended / count, self._expected(point), after)
                    result = self._measure(point)
                results.append(result)
                if self._stop_when_saturated and result.summary is not None and result.summary.overloaded:
                    lowest = saturated.get(point.backend, math.inf)
                    saturated[point.backend] = min(point.rate, lowest)
                if self._fail_fast and result.exit.code != DONE:
                    break
        return results

    def find_rate(
        self, label: str, search: Search, slo: SLO, seeds: Sequence[int], *, even_above_capacity: bool = False
    ) -> RateSearchResult:
        """Search the highest rate that meets ``slo``, by means over ``seeds``.

        Args:
            even_above_capacity: Accept a rate above capacity. Otherwise it counts as missed: with more
                requests, its latencies would be higher.

        Raises:
            KeyboardInterrupt: the user interrupted; the current point is saved as interrupted.
        """
        probes: list[Probe] = []
        tried: list[dict[str, Any]] = []
        codes: list[int] = []

        def found(stopped: str = "") -> RateSearchResult:
            result = RateSearchResult(Bracket.of(probes), tried, tuple(codes), stopped)
            searches = dict(self._folder.info.get("searches") or {})
            self._folder.save(searches=searches | {label: _search_json(result)})
            return result

        with self._running(label):
            while (rate := search.next_rate(probes)) is not None:
                points = [self._plan.point(label, rate, seed) for seed in seeds]
                self._folder.add(points, self._max_error_rate)
                summaries, cached = [], False
                for number, point in enumerate(points, 1):
                    if (result := self.known(point)) is None:
                        steps = search.steps_left(probes)
                        after = len(seeds) - number + len(seeds) * (steps - 1) if steps else 0
                        estimate = self._expected(point)
                        place = f"probe {len(probes) + 1} of at most {search.max_probes} of {label}"
                        share = len(probes) / search.max_probes
                        self._total.begin(place, str(point), share, estimate, [estimate] * after)
                        result = self._measure(point)
                    codes.append(result.exit.code)
                    if result.summary is None or result.exit.code == FAILED:
                        return found(f"at {rate:g}/s: {result.exit.sentence}")
                    summaries.append(result.summary)
                    cached = cached or CACHED in result.marks
                figures = mean_figures(slo, summaries)
                errors = TOO_MANY_ERRORS in codes[-len(seeds) :]
                rejected = fmean(summary.rejected_share for summary in summaries)
                busy = rejects_too_many(rejected)
                if None in figures.values() and not (errors or busy):
                    return found(f"at {rate:g}/s no request has the figure that the SLO bounds")
                overloaded = any(summary.overloaded for summary in summaries)
                too_much = overloaded and not even_above_capacity
                met = not (errors or busy or too_much) and holds(slo, figures)
                probes.append(Probe(rate, met))
                by_seed = figures_by_seed(slo, dict(zip(seeds, summaries, strict=True)))
                probe = {"rate": rate, "figures": figures, "by_seed": by_seed, "met": met}
                tried.append(probe | {"overloaded": overloaded, "cached": cached, "rejected": rejected})
                text = ", ".join(f"{bound} {seconds(value)}" for bound, value in figures.items())
                text += f", {percent(rejected)} rejected" if rejected else ""
                text += ", above capacity" if overloaded else ""
                self._display.report(f"  {rate:g}/s {'meets' if met else 'misses'} the SLO: {text}")
        return found()

    def known(self, point: SweepPoint) -> Result | None:
        """Return the result of an earlier run of the point; None if it must be run."""
        if (earlier := self._folder.result(point, self._max_error_rate)) is None:
            return None
        path, info, exit_status = earlier
        return Result(point, exit_status, Summary.from_dict(info["summary"]), path, info)

    @contextmanager
    def _running(self, label: str) -> Iterator[None]:
        """Close the backend at the end. The first point that runs starts the server."""
        backend = self._backends[label]
        if not self._restart:
            backend.share(self._folder.path / f"server_{_file_name(label)}.log")
        try:
            yield
        finally:
            backend.close()

    def _measure(self, point: SweepPoint) -> Result:
        self._display.report(self._total.line())
        self._folder.mark(point, "running")
        path, info = None, None
        try:
            run = execute_run(
                self._backends[point.backend],
                self._dataset,
                self._plan.load(point.level, point.seed),
                results=self._folder.path,
                display=self._display,
                point=point.fingerprint,
                options=self._options(point),
            )
            path, info = run.path, run.info
            exit_status = exit_status_of(info, self._max_error_rate)
        except BackendError as error:
            exit_status = ExitStatus(FAILED, str(error))
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            code, sentence = (INTERRUPTED, "before the load began") if interrupted else (FAILED, str(error))
            exit_status = ExitStatus(code, sentence)
            self._folder.ended(point, exit_status, None)
            raise
        elapsed = self._total.end()
        self._folder.ended(point, exit_status, path)
        if exit_status.code == INTERRUPTED:
            self._display.report(exit_status.sentence)
            raise KeyboardInterrupt
        summary = Summary.from_dict(info["summary"]) if info and info.get("summary") else None
        result = Result(point, exit_status, summary, path, info or {})
        marks = "".join(f"{mark.sign} " for mark in result.marks)
        self._display.report(f"  {marks}{_outcome(exit_status, summary)}; {clock(elapsed)}")
        return result


def mean_figures(slo: SLO, summaries: Sequence[Summary]) -> dict[str, float | None]:
    """Return, for each bound, the mean over runs of the bounded figure; None if a run lacks the figure."""
    figures: dict[str, float | None] = {}
    for bound in slo.bounds:
        found = [summary.figure(bound.metric, bound.statistic) for summary in summaries]
        values = [value for value in found if value is not None]
        figures[str(bound)] = sum(values) / len(values) if values and len(values) == len(found) else None
    return figures


def figures_by_seed(slo: SLO, summaries: Mapping[int, Summary]) -> dict[str, dict[str, float | None]]:
    """Return, for each bound, the bounded figure of each seed; seeds are texts, as in JSON."""
    return {
        str(bound): {
            str(seed): summary.figure(bound.metric, bound.statistic) for seed, summary in summaries.items()
        }
        for bound in slo.bounds
    }


def holds(slo: SLO, figures: Mapping[str, float | None]) -> bool:
    """Whether the mean figures meet every bound."""
    values = [(bound, figures[str(bound)]) for bound in slo.bounds]
    return all(value is not None and value <= bound.limit for bound, value in values)


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+]+", "-", label).strip("-")[:100]


def _outcome(exit_status: ExitStatus, summary: Summary | None) -> str:
    """Return the error, or else the main figures, for the line of a finished point."""
    if exit_status.sentence:
        return exit_status.sentence.rstrip(".")
    assert summary is not None
    figures = [
        f"mean {metric_called(metric).label} {seconds(value)}"
        for metric in ("normalized_latency", "ttft", "jct")
        if (value := summary.figure(metric)) is not None
    ]
    if summary.rejected:
        figures.append(f"{percent(summary.rejected_share)} rejected")
    return ", ".join(figures)


def _search_json(found: RateSearchResult) -> dict[str, Any]:
    bracket = found.bracket
    return {
        "met": bracket.met,
        "missed": bracket.missed,
        "rate": bracket.rate,
        "uncertainty": bracket.uncertainty,
        "probes": found.tried,
        "stopped": found.stopped,
    }
