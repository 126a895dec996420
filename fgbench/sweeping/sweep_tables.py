"""Tables that a sweep prints: its plan, its results, and the results of searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fgbench.exit_codes import STATUS
from fgbench.report.run_tables import (
    ANALYTIC_MARK,
    CACHED_MARK,
    CACHED_NOTE,
    DISTURBED_MARK,
    DISTURBED_NOTE,
    OVERLOAD_MARK,
    OVERLOAD_NOTE,
    analytic_note,
)
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
        level = _level(point) + (f" {OVERLOAD_MARK}" if _is_overloaded(result) else "")
        level += f" {DISTURBED_MARK}" if result.disturbed else ""
        level += f" {CACHED_MARK}" if result.cached else ""
        level += f" {ANALYTIC_MARK}" if result.analytic_device else ""
        table.add_row(point.backend, level, str(point.seed), *means, STATUS[result.exit.code])
    notes = [OVERLOAD_NOTE] if any(map(_is_overloaded, results)) else []
    notes += [DISTURBED_NOTE] if any(result.disturbed for result in results) else []
    notes += [CACHED_NOTE] if any(result.cached for result in results) else []
    devices = sorted({result.analytic_device for result in results if result.analytic_device})
    notes += [analytic_note(", ".join(devices))] if devices else []
    infos: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        infos.setdefault(result.point.backend, []).append(result.info)
    return Group(
        table,
        *(Text(note, style="yellow") for note in notes),
        *(Text(note.text, style="yellow" if note.warns else "dim") for note in unequal(infos)),
    )


def _is_overloaded(result: Result) -> bool:
    return result.summary is not None and result.summary.overloaded


def search_tables(found: Mapping[str, RateSearchResult], slo: SLO, seeds: int) -> Group:
    """Return each backend's probes, sorted by rate, and the resulting answer."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = []
    for label, search in found.items():
        table = _table("rate", *map(str, slo.bounds), "rejected", "")
        table.title = label
        for probe in sorted(search.tried, key=lambda probe: float(probe["rate"])):
            rate = f"{number(probe['rate'], 4)}/s" + (f" {OVERLOAD_MARK}" if probe["overloaded"] else "")
            rate += f" {CACHED_MARK}" if probe.get("cached") else ""
            figures = [seconds(value) for value in probe["figures"].values()]
            rejected = percent(probe.get("rejected", 0.0))
            table.add_row(rate, *figures, rejected, "met" if probe["met"] else "missed")
        parts += [table, Text(answer(label, search, slo), style="bold"), Text()]
    basis = (
        "They use one seed; another seed may differ" if seeds == 1 else f"They are means over {seeds} seeds"
    )
    if any(probe.get("cached") for search in found.values() for probe in search.tried):
        parts.append(Text(CACHED_NOTE, style="yellow"))
    note = f"The answers depend on chance and, above capacity, on the number of requests. {basis}."
    return Group(*parts, Text(note, style="dim"))


def answer(label: str, found: RateSearchResult, slo: SLO) -> str:
    """Return the highest rate with its uncertainty, or the reason why there is none."""
    bracket, probes = found.bracket, f"{len(found.tried)} probe{'s' if len(found.tried) != 1 else ''}"
    if bracket.rate is not None and bracket.uncertainty is not None:
        stopped = f" The search stopped: {found.stopped}." if found.stopped else ""
        return (
            f"{label} meets {slo} up to {bracket.rate:.4g}/s ± {bracket.uncertainty:.1%}: met at "
            f"{bracket.met:.4g}/s, missed at {bracket.missed:.4g}/s; {probes}.{stopped}"
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
