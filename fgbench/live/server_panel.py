"""A server's figures as lines of a panel: in full for ``fgbench watch``, in short under a load's own."""

from __future__ import annotations

from rich.text import Text

from fgbench.live.layout import bar, clean, figure, flow, gauge, rule, trend
from fgbench.live.meter import Meter
from fgbench.live.stats import LevelCount, Pool, Snapshot
from fgengine.units import clock, number, percent, seconds, size

MIN_LEVELS = 4
"""Shown even when the deeper ones are empty."""
TWO_COLUMNS = 70
"""Width from which on levels stand side by side."""
BUSY, FULL = "cyan", "yellow"
LAST_MINUTE = 55.0
"""Seconds from which on a look back is called a minute: looks are not taken to the second."""
NOTABLE_WAIT = 0.1
"""Share of time that the device idles for copies, from which on the figure is coloured."""


def name_of(snapshot: Snapshot) -> str:
    parts = (clean(snapshot.model, 60), clean(snapshot.policy, 40))
    return " · ".join(part for part in parts if part)


def gauges(snapshot: Snapshot, width: int) -> list[Text]:
    """The batch and the two pools."""
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
    """Who is where, and what became of those that are gone."""
    snapshot = meter.snapshot
    if snapshot is None:
        return []
    told = [
        ("running", snapshot.running),
        ("waiting", snapshot.waiting),
        ("swapped", snapshot.swapped),
        ("done", snapshot.counters.get("finished")),
        ("aborted", snapshot.counters.get("aborted")),
        ("rejected", snapshot.counters.get("requests_rejected")),
        ("timed out", snapshot.counters.get("requests_timed_out") or None),
        ("preemptions", snapshot.counters.get("preemptions")),
    ]
    return flow((figure(name, f"{value:,.0f}") for name, value in told if value is not None), width)


def pressure_line(meter: Meter) -> list[Text]:
    """One line while KV memory is under pressure, and for a minute after; else none."""
    snapshot, recent = meter.snapshot, meter.recent_pressure()
    if snapshot is None:
        return []
    lately = ""
    if recent is not None and recent[0] > 0.0:
        spent, watched = recent
        span = "minute" if watched >= LAST_MINUTE else seconds(watched)
        lately = f" ({seconds(spent)} of the last {span})"
    if snapshot.under_pressure:
        return [Text(f"under pressure: nothing new starts{lately}", style=FULL)]
    return [Text(f"pressure is over{lately}", style="dim")] if lately else []


def level_lines(levels: tuple[LevelCount, ...], width: int, most: int = 16) -> list[Text]:
    """Jobs in each level as bars, down to the deepest that holds one; beyond ``most`` as one sum."""
    deepest = max((k + 1 for k, level in enumerate(levels) if level.requests), default=0)
    shown = list(levels[: max(MIN_LEVELS, deepest)])
    if len(shown) > most:
        rest = sum(level.requests for level in shown[most - 1 :])
        shown = [*shown[: most - 1], LevelCount(f"below {shown[most - 2].name}", rest, None)]
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
    """The levels that hold somebody, in a row."""
    held = [(clean(level.name, 16), level.requests) for level in levels if level.requests]
    if not held:
        return None
    return Text.assemble(("levels ", "dim"), ("  ".join(f"{name}:{n}" for name, n in held), "magenta"))


def trends(meter: Meter, width: int) -> list[tuple[int, list[Text]]]:
    """Rates now and over the last minutes, each with its rank: the least missed has the largest."""
    rates, history = meter.rates, meter.history
    shown: list[tuple[int, list[Text]]] = []

    def row(rank: int, name: str, label: str, value: str) -> None:
        if history[name].most is not None or (rates is not None and getattr(rates, name) is not None):
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
    row(4, "offloaded_blocks", "swap out blocks/s", moved("offloaded_blocks", "offloaded_bytes"))
    row(4, "uploaded_blocks", "swap in blocks/s", moved("uploaded_blocks", "uploaded_bytes"))
    row(4, "copy_wait_share", "idle for copies", percent(rates.copy_wait_share if rates else None))
    row(5, "recomputed_tokens", "recomputed tok/s", per_second("recomputed_tokens"))
    return shown


def brief(meter: Meter, width: int, silence: float) -> list[Text]:
    """What stands under a load's own figures: where its requests are, and what moving them costs."""
    snapshot, rates = meter.snapshot, meter.rates
    if snapshot is None:
        return []
    silent = f" · no answer for {clock(silence)}" if silence > 3 * meter.interval + 1 else ""
    lines = [rule(f"server {name_of(snapshot)}{silent}", width), *gauges(snapshot, width)]
    parts = [
        figure(name, f"{value:,}")
        for name, value in (("waiting", snapshot.waiting), ("swapped", snapshot.swapped))
        if value is not None
    ]
    if (preemptions := snapshot.counters.get("preemptions")) is not None:
        rate = f" ({number(rates.preemptions)}/s)" if rates is not None else ""
        parts.append(figure("preemptions", f"{preemptions:,.0f}{rate}"))
    if rates is not None and rates.offloaded_bytes is not None and rates.uploaded_bytes is not None:
        swap = f"{size(rates.offloaded_bytes)}/s out, {size(rates.uploaded_bytes)}/s in"
        parts.append(figure("swaps", swap))
    if rates is not None and rates.copy_wait_share is not None:
        style = FULL if rates.copy_wait_share >= NOTABLE_WAIT else "bold"
        parts.append(figure("device idle for copies", percent(rates.copy_wait_share), style))
    if (held := level_line(snapshot.levels)) is not None:
        parts.append(held)
    return lines + pressure_line(meter) + flow(parts, width)


def _pool(pool: Pool) -> str:
    share = f"{pool.used_share:.0%}"
    return share if pool.blocks is None else f"{pool.used:,}/{pool.blocks:,} {share:>4}"
