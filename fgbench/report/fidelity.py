"""Compares a simulation with the run that it replays: measured figures, simulated figures, ratios. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import Summary, summarize
from fgbench.workload.workload import RequestSpec
from fgengine.cost import CostModel
from fgengine.units import number, seconds
from fgengine.work import Work

if TYPE_CHECKING:
    from rich.table import Table

    from fgbench.results.run import Run

OUTSIDE_STEPS = ("copy_wait_seconds",)
"""Fields of ``Work`` that do not describe steps. Runs of older servers do not have them."""
NOTABLE = 0.1
"""A ratio that differs from 1 by more than this is highlighted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, measured and simulated."""

    name: str
    measured: float | None
    simulated: float | None
    is_latency: bool = True

    @property
    def ratio(self) -> float | None:
        """Simulated over measured."""
        if self.simulated is None or not self.measured:
            return None
        return self.simulated / self.measured


@dataclass(frozen=True, slots=True)
class StepSpeed:
    """Duration of the real server's steps, as a multiple of what the profile predicts for the same steps."""

    model: float
    """Only the model's computation."""
    total: float
    """Including scheduling and the time between steps."""

    @classmethod
    def of(cls, info: dict[str, Any], cost: CostModel) -> StepSpeed | None:
        """Compute it from run.json.

        Returns None if run.json lacks the counters, or if the cost model is not linear.
        """
        stats = info.get("server_stats") or {}
        before, after = stats.get("before"), stats.get("after")
        if not before or not after:
            return None
        names = [f.name for f in fields(Work) if f.name not in OUTSIDE_STEPS]
        if not all(name in before and name in after for name in names):
            return None
        work = Work(**{name: after[name] - before[name] for name in names})
        predicted = work.predicted_seconds(cost)
        if predicted is None or work.work_steps < 1 or predicted <= 0.0:
            return None
        return cls(work.model_seconds / predicted, work.seconds / predicted)


def requests_of(records: Sequence[RequestRecord]) -> list[RequestSpec]:
    """Return the requests that a run's server received, with their real times, in order of arrival."""
    specs = [
        RequestSpec(r.index, r.sent, (), r.prompt_tokens, r.output_tokens or r.asked_tokens, r.user)
        for r in records
    ]
    return sorted(specs, key=lambda spec: (spec.scheduled, spec.index))


def fidelity(measured: Sequence[RequestRecord], simulated: Sequence[RequestRecord]) -> list[Row]:
    """Return the compared figures.

    They cover the requests that the real server answered in full. Latencies count from the moment that the
    client sent the request.
    """
    answered = {record.index for record in measured if record.ok}
    real = summarize(measured, offered_rate=None)
    simulation = summarize([record for record in simulated if record.index in answered], offered_rate=None)

    def row(name: str, metric: str, statistic: str = "mean") -> Row:
        return Row(name, real.figure(metric, statistic), simulation.figure(metric, statistic))

    def preemptions(summary: Summary) -> float | None:
        return summary.server_totals.get("preemptions")

    return [
        row("mean JCT", "jct_from_sent"),
        row("p95 JCT", "jct_from_sent", "p95"),
        row("mean JCT / token", "normalized_latency_from_sent"),
        row("mean TTFT", "ttft_from_sent"),
        Row("preemptions", preemptions(real), preemptions(simulation), is_latency=False),
        Row(
            "output tokens / s",
            real.output_token_throughput,
            simulation.output_token_throughput,
            is_latency=False,
        ),
    ]


def fidelity_table(title: str, rows: Sequence[Row]) -> Table:
    """Return the rows as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("measured", "simulated", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        shown = seconds if row.is_latency else number
        ratio = Text("-")
        if row.ratio is not None:
            far = abs(row.ratio - 1.0) > NOTABLE
            ratio = Text(f"{row.ratio:.3f}", style="yellow" if far else "")
        table.add_row(row.name, shown(row.measured), shown(row.simulated), ratio)
    return table


def fidelity_json(
    run: Run, rows: Sequence[Row], speed: StepSpeed | None, at_speed: Sequence[Row]
) -> dict[str, Any]:
    """Return the comparison as plain JSON values, in seconds. A ratio is simulated over measured.

    ``at_speed``: rows of a second simulation, whose steps take as long as the run's own.
    """
    return {
        "run": str(run.path),
        "complete": run.complete,
        "figures": _figures(rows),
        "steps_took": None if speed is None else {"model": speed.model, "whole": speed.total},
        "figures_at_that_speed": _figures(at_speed),
    }


def _figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"name": r.name, "measured": r.measured, "simulated": r.simulated, "ratio": r.ratio} for r in rows
    ]
