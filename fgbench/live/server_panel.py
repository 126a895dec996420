"""A server's statistics as lines of a panel: all for ``fgbench watch``, a few in the panel of a load."""

from __future__ import annotations

from rich.text import Text

from fgbench.live.layout import bar, clean, figure, flow, gauge, rule, trend
from fgbench.live.meter import Meter
from fgbench.live.stats import LevelCount, Pool, Snapshot
from fgengine.units import clock, number, percent, seconds, size

MIN_LEVELS = 4
"""Number of levels that are shown even if they are empty."""
TWO_COLUMNS = 70
"""Minimum width at which levels are shown in two columns."""
BUSY, FULL = "cyan", "yellow"
LAST_MINUTE = 55.0
"""Minimum number of seconds that is shown as a minute, because snapshots are not exactly a second apart."""
NOTABLE_WAIT = 0.1
"""Share of time in which the device is idle for copies, from which the figure is highlighted."""


def name_of(snapshot: Snapshot) -> str:
    """Return the server's model, policy and analytic device, such as ``tiny · sj-mlfq``."""
    device = snapshot.analytic_device and f"analytic {clean(snapshot.analytic_device, 60)}"
    parts = (clean(snapshot.model, 60), clean(snapshot.policy, 40), device)
    return " · ".join(part for part in parts if part)


def gauges(snapshot: Snapshot, width: int) -> list[Text]:
    """Return gauges of the batch and the two KV pools."""
    lines = []
    if snapshot.running is not None and snapshot.max_batch_size:
        value = f"{snapshot.running}/{snapshot.max_batch_size}"
        lines.append(("batch", snapshot.running / snapshot.max_batch_size, value, BUSY))
    for name, pool in (("device KV", snapshot.device), ("host KV", snapshot.host)):
        if pool is not None:
            style = FULL if pool.used_share > 0.95 else BUSY
            lines.append((name, pool.used_share, _pool(pool), style))
    widest = max((len(value) for _, _, value, _ in lines), default=0)
    return [gauge(name, share, value.rjust(widest), width, style) for name, share, value, style in lines]


def counts(meter: Meter, width: int) -> list[Text]:
    """Return the numbers of requests: where the unfinished ones are, and how the others ended."""
    snapshot = meter.snapshot
    if snapshot is None:
        return []
    figures = [
        ("running", snapshot.running),
        ("waiting", snapshot.waiting),
        ("offloaded", snapshot.swapped),
        ("done", snapshot.counters.get("finished")),
        ("aborted", snapshot.counters.get("aborted")),
        ("rejected", snapshot.counters.get("requests_rejected")),
        ("timed out", snapshot.counters.get("requests_timed_out") or None),
        ("preemptions", snapshot.counters.get("preemptions")),
    ]
    return flow((figure(name, f"{value:,.0f}") for name, value in figures if value is not None), width)


def pressure_line(meter: Meter) -> list[Text]:
    """Return one line while KV memory is under pressure and for a minute after it, else none."""
    snapshot, recent = meter.snapshot, meter.recent_pressure()
    if snapshot is None:
        return []
    recently = ""
    if recent is not None and recent[0] > 0.0:
        spent, watched = recent
        span = "minute" if watched >= LAST_MINUTE else seconds(watched)
        recently = f" ({seconds(spent)} of the last {span})"
    if snapshot.under_pressure:
        return [Text(f"under pressure: no new request starts{recently}", style=FULL)]
    return [Text(f"pressure has ended{recently}", style="dim")] if recently else []


def level_lines(levels: tuple[LevelCount, ...], width: int, limit: int = 16) -> list[Text]:
    """Return bars of the requests in each level, down to the lowest level that is not empty.

    If there are more than ``limit`` levels, the last bar is the sum of the others.
    """
    lowest = max((k + 1 for k, level in enumerate(levels) if level.requests), default=0)
    shown = list(levels[: max(MIN_LEVELS, lowest)])
    if len(shown) > limit:
        rest = sum(level.requests for level in shown[limit - 1 :])
        shown = [*shown[: limit - 1], LevelCount(f"below {shown[limit - 2].name}", rest, None)]
    if not shown:
        return []
    columns = 2 if width >= TWO_COLUMNS and len(shown) > MIN_LEVELS else 1
    names = [clean(level.name, 16) for level in shown]
    quanta = ["" if level.quantum is None else seconds(level.quantum) for level in shown]
    label, quantum = max(map(len, names)), max(map(len, quanta))
    count = max(len(str(level.requests)) for level in shown)
    column = (width - 3 * (columns - 1)) // columns
    top = max(1, *(level.requests for level in shown))
    entries = [
        Text.assemble(
            (f"{name:<{label}} {spent:>{quantum}} ", "dim"),
            bar(level.requests / top, max(4, column - label - quantum - count - 3), "magenta"),
            (f" {level.requests:>{count}}", "bold"),
        )
        for name, spent, level in zip(names, quanta, shown, strict=True)
    ]
    height = -(-len(entries) // columns)
    return [Text("   ").join(entries[row::height]) for row in range(height)]


def level_line(levels: tuple[LevelCount, ...]) -> Text | None:
    """Return the levels that are not empty in one line; None if all are empty."""
    occupied = [(clean(level.name, 16), level.requests) for level in levels if level.requests]
    if not occupied:
        return None
    return Text.assemble(("levels ", "dim"), ("  ".join(f"{name}:{n}" for name, n in occupied), "magenta"))


def trends(meter: Meter, width: int) -> list[tuple[int, list[Text]]]:
    """Return the current rates with curves of the last minutes, each with its rank for ``Lines``."""
    rates, history = meter.rates, meter.history
    shown: list[tuple[int, list[Text]]] = []

    def row(rank: int, name: str, label: str, value: str) -> None:
        if history[name].maximum is not None or (rates is not None and getattr(rates, name) is not None):
            shown.append((rank, [trend(label, value, history[name], width)]))

    def per_second(name: str) -> str:
        value = None if rates is None else getattr(rates, name)
        return number(value)

    def moved(blocks: str, moved_bytes: str) -> str:
        value = None if rates is None else getattr(rates, moved_bytes)
        return per_second(blocks) + ("" if value is None else f" ({size(value)})")

    row(0, "generated_tokens", "output tokens/s", per_second("generated_tokens"))
    row(2, "prompt_tokens", "prompt tokens/s", per_second("prompt_tokens"))
    row(1, "finished", "requests done/s", per_second("finished"))
    row(2, "step_seconds", "step time", seconds(rates.step_seconds if rates else None))
    row(3, "preemptions", "preemptions/s", per_second("preemptions"))
    row(4, "offloaded_blocks", "offload blocks/s", moved("offloaded_blocks", "offloaded_bytes"))
    row(4, "uploaded_blocks", "upload blocks/s", moved("uploaded_blocks", "uploaded_bytes"))
    row(4, "copy_wait_share", "idle for copies", percent(rates.copy_wait_share if rates else None))
    row(5, "recomputed_tokens", "recomputed tok/s", per_second("recomputed_tokens"))
    return shown


def brief(meter: Meter, width: int, silence: float) -> list[Text]:
    """Return the server's part of a load's panel: where requests are, and the cost of moving their KV."""
    snapshot, rates = meter.snapshot, meter.rates
    if snapshot is None:
        return []
    silent = f" · no answer for {clock(silence)}" if silence > 3 * meter.interval + 1 else ""
    lines = [rule(f"server {name_of(snapshot)}{silent}", width), *gauges(snapshot, width)]
    parts = [
        figure(name, f"{value:,}")
        for name, value in (("waiting", snapshot.waiting), ("offloaded", snapshot.swapped))
        if value is not None
    ]
    if (preemptions := snapshot.counters.get("preemptions")) is not None:
        rate = f" ({number(rates.preemptions)}/s)" if rates is not None else ""
        parts.append(figure("preemptions", f"{preemptions:,.0f}{rate}"))
    if rates is not None and rates.offloaded_bytes is not None and rates.uploaded_bytes is not None:
        parts.append(figure("offload", f"{size(rates.offloaded_bytes)}/s"))
        parts.append(figure("upload", f"{size(rates.uploaded_bytes)}/s"))
    if rates is not None and rates.copy_wait_share is not None:
        style = FULL if rates.copy_wait_share >= NOTABLE_WAIT else "bold"
        parts.append(figure("device idle for copies", percent(rates.copy_wait_share), style))
    if (occupied := level_line(snapshot.levels)) is not None:
        parts.append(occupied)
    return lines + pressure_line(meter) + flow(parts, width)


def _pool(pool: Pool) -> str:
    share = f"{pool.used_share:.0%}"
    return share if pool.blocks is None else f"{pool.used:,}/{pool.blocks:,} {share:>4}"
