"""Tables that a sweep prints: its plan, its results, and the results of searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from fgbench.exit_codes import STATUS
from fgbench.metrics.crossing import Range, rate_at
from fgbench.metrics.statistics import CONFIDENCE, figure_interval
from fgbench.report.marks import CACHED, OVERLOADED, Mark, notes_on, signs
from fgbench.report.unequal import unequal
from fgengine.units import clock, number, percent, seconds

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from fgbench.metrics.slo import SLO
    from fgbench.sweeping.plan import SweepPoint
    from fgbench.sweeping.runner import RateSearchResult, Result


def plan_table(points: Sequence[tuple[SweepPoint, float | None, bool]]) -> Group:
    """Return a table with one row per point, and a line with the total.

    ``points``: each with its estimated seconds (None: no estimate), and whether it is already done.
    """
    from rich.console import Group
    from rich.text import Text

    table = _table("backend", _load([point for point, _, _ in points]), "seed", "about", "")
    for point, expected, done in points:
        estimate = "-" if done else "?" if expected is None else clock(expected)
        state = "done: skipped" if done else "to run"
        table.add_row(point.backend, _level(point), str(point.seed), estimate, state)
    left = [expected for _, expected, done in points if not done]
    known = [expected for expected in left if expected is not None]
    text = f"{len(left)} of {len(points)} points to run"
    if known:
        text += f": about {clock(sum(known))}, plus the time to start servers and warm up"
    if len(known) < len(left):
        text += f"; no estimate for {len(left) - len(known)} (simulations, or all at once)"
    return Group(table, Text(f"{text}."))


def results_table(results: Sequence[Result]) -> Group:
    """Return a table with one row per point, and notes on the marks."""
    from rich.console import Group
    from rich.text import Text

    load = _load([result.point for result in results])
    table = _table("backend", load, "seed", "JCT / token", "TTFT", "JCT", "answered", "rejected", "")
    for result in results:
        point, figures = result.point, result.summary
        means = ["-"] * 5
        if figures is not None:
            means = [seconds(figures.figure(metric)) for metric in ("normalized_latency", "ttft", "jct")]
            means.append(f"{number(figures.request_throughput)}/s")
            means.append(percent(figures.rejected_share))
        level = _level(point) + signs(result.marks)
        table.add_row(point.backend, level, str(point.seed), *means, STATUS[result.exit.code])
    notes = notes_on(result.marks for result in results)
    infos: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        infos.setdefault(result.point.backend, []).append(result.info)
    return Group(
        table,
        *(Text(note, style="yellow") for note in notes),
        *(Text(note.text, style="yellow" if note.warns else "dim") for note in unequal(infos)),
    )


def search_tables(found: Mapping[str, RateSearchResult], slo: SLO, seeds: int) -> Group:
    """Return each backend's probes, sorted by rate, and the resulting answer."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = []
    for label, search in found.items():
        table = _table("rate", *map(str, slo.bounds), "rejected", "")
        table.title = label
        for probe in sorted(search.tried, key=lambda probe: float(probe["rate"])):
            rate = f"{number(probe['rate'], 4)}/s" + signs(_marks(probe))
            figures = [seconds(value) for value in probe["figures"].values()]
            rejected = percent(probe.get("rejected", 0.0))
            table.add_row(rate, *figures, rejected, "met" if probe["met"] else "missed")
        parts += [table, Text(answer(label, search, slo), style="bold"), Text()]
    basis = (
        "They use one seed; another seed may differ" if seeds == 1 else f"They are means over {seeds} seeds"
    )
    probes = [probe for search in found.values() for probe in search.tried]
    parts += [Text(note, style="yellow") for note in notes_on(map(_marks, probes))]
    note = f"The answers depend on chance and, above capacity, on the number of requests. {basis}."
    return Group(*parts, Text(note, style="dim"))


def _over_seeds(found: RateSearchResult, slo: SLO) -> str:
    """Return in words how much the rate depends on the seed."""
    rates = rates_by_seed(found, slo)
    interval = figure_interval(list(rates.values())) if rates else None
    if interval is None:
        return "how much it depends on the seed is not known"
    return f"{CONFIDENCE:.0%} interval over {len(rates)} seeds: {interval.low:.4g} to {interval.high:.4g}/s"


def rates_by_seed(found: RateSearchResult, slo: SLO) -> dict[str, float]:
    """Return the rate at which each seed's own figures reach the SLO, by linear interpolation.

    Empty if that of any seed lies outside the rates tried: leaving it out would bias the interval.
    """
    rates: dict[str, float] = {}
    seeds = {seed for probe in found.tried for by in probe.get("by_seed", {}).values() for seed in by}
    for seed in sorted(seeds):
        crossings = []
        for bound in slo.bounds:
            curve = [(float(p["rate"]), p["by_seed"][str(bound)].get(seed)) for p in found.tried]
            known = [(rate, value) for rate, value in curve if value is not None]
            crossings.append(rate_at(known, bound.limit))
        if any(crossing is None for crossing in crossings):
            return {}
        rate = reduce(Range.and_below, [one for one in crossings if one is not None]).exact
        if rate is None:
            return {}
        rates[seed] = rate
    return rates


def _marks(probe: Mapping[str, Any]) -> dict[Mark, str]:
    """Return the marks of a probe, from the search in sweep.json."""
    found = {OVERLOADED: probe["overloaded"], CACHED: probe.get("cached")}
    return {mark: "" for mark, applies in found.items() if applies}


def answer(label: str, found: RateSearchResult, slo: SLO) -> str:
    """Return the highest rate with its uncertainty, or the reason why there is none."""
    bracket, probes = found.bracket, f"{len(found.tried)} probe{'s' if len(found.tried) != 1 else ''}"
    if bracket.rate is not None and bracket.uncertainty is not None:
        stopped = f" The search stopped: {found.stopped}." if found.stopped else ""
        return (
            f"{label} meets {slo} up to {bracket.rate:.4g}/s: met at {bracket.met:.4g}/s, missed at "
            f"{bracket.missed:.4g}/s (± {bracket.uncertainty:.1%}); {_over_seeds(found, slo)}; "
            f"{probes}.{stopped}"
        )
    if found.stopped:
        return f"{label}: no answer, the search stopped {found.stopped}"
    if bracket.met is not None:
        return (
            f"{label}: no limit found. {slo} was still met at {bracket.met:.4g}/s, the highest rate tried; "
            f"{probes}. Start higher with --rates, or send more requests."
        )
    if bracket.missed is not None:
        return (
            f"{label}: no limit found. {slo} was still missed at {bracket.missed:.4g}/s, the lowest rate "
            f"tried; {probes}. Start lower with --rates; perhaps no rate meets it."
        )
    return f"{label}: no rate was measured"


def _load(points: Sequence[SweepPoint]) -> str:
    """Return the heading of the column of levels: a sweep varies either the rate or the concurrency."""
    return "rate" if all(point.concurrency is None for point in points) else "in flight"


def _level(point: SweepPoint) -> str:
    return number(point.rate) if point.concurrency is None else f"{point.concurrency}"


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    words = {"backend", ""}
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    return table
