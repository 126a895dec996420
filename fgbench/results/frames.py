"""Converts run folders to tables: one row per run, and one row per request.

DuckDB queries the Arrow tables. ``fgbench.runs`` and ``fgbench.load_runs`` return them as DataFrames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.metrics.accounts import ANALYTIC_DEVICE, MachineAccount, MemoryAccount, analytic_device
from fgbench.metrics.conditions import CacheAccount
from fgbench.metrics.metric import METRICS, OF_REQUESTS, Metric
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import Distribution
from fgbench.metrics.summary import Summary
from fgbench.results.run import (
    TABLE_FILE,
    read_info,
    read_records,
    readable,
    run_folders,
    status_of,
    stored_summary,
    trim_of,
)
from fgbench.results.table import damaged, read_table, record_batches, record_schema, records_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as ds

TEXTS = (
    *("run", "path", "status", "backend", "policy", "model", "endpoint", "url", "dataset", "arrivals"),
    *("settings", "started", "ended", "error", "fingerprint", "prompts_fingerprint"),
    *("git_commit", "cpu", "errors", "rejections", "server_totals", ANALYTIC_DEVICE),
)
COUNTS = ("requests", "ok", "failed", "rejected", "prompt_tokens", "output_tokens", "server_requests")
RATES = (
    "duration_s",
    "request_throughput",
    "output_token_throughput",
    "total_token_throughput",
    "achieved_rate",
    "scheduled_rate",
    "window_throughput",
    "shortfall",
    "rejected_share",
)
MEMORY = ("pressure_seconds", "copy_wait_seconds", "copy_wait_share")
MACHINE = ("other_cores", "stolen_cores")
STATISTICS = tuple(f.name for f in fields(Distribution) if f.name != "count")
NAMES_OF_A_RUN = ("run", "path", "status", "backend", "policy", "model", "dataset", "arrivals")
NUMBERS_OF_A_RUN = ("rate", "concurrency", "seed")
"""With ``NAMES_OF_A_RUN``, the columns of ``fgbench.load_runs`` that describe the run of a request."""


def runs(paths: Iterable[str | Path], left_out: Callable[[str], None]) -> pd.DataFrame:
    """Implement ``fgbench.runs``. ``left_out`` is called with a sentence for each damaged run."""
    import pandas as pd

    frame = runs_table(readable(_row, _folders(paths), left_out)).to_pandas()
    for name in ("started", "ended"):
        frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601", errors="coerce")
    return frame


def load_runs(paths: Iterable[str | Path], left_out: Callable[[str], None]) -> pd.DataFrame:
    """Implement ``fgbench.load_runs``. ``left_out`` is called with a sentence for each damaged run."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    loaded = readable(_described_requests, _folders(paths), left_out)
    tables = [table for _, table in loaded] or [with_metrics(record_schema().empty_table(), {})]
    requests = pa.concat_tables(tables, promote_options="default").to_pandas()
    of_run = {}
    for name in (*NAMES_OF_A_RUN, *NUMBERS_OF_A_RUN):
        values = pd.Categorical([info[name] for info, _ in loaded], ordered=name in NUMBERS_OF_A_RUN)
        codes = np.repeat(values.codes, [table.num_rows for _, table in loaded])
        of_run[name] = pd.Categorical.from_codes(codes, dtype=values.dtype)
    return pd.concat([pd.DataFrame(of_run), requests], axis=1)


def _folders(paths: Iterable[str | Path]) -> list[Path]:
    """Return the run folders at ``paths``, without duplicates."""
    return list({folder.resolve(): folder for path in paths for folder in run_folders(path)}.values())


def runs_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return a table with one row per run: its settings and its summary.

    A distribution becomes several columns: ``ttft_mean``, ``ttft_p50``, ...
    """
    import pyarrow as pa

    schema = pa.schema(
        [
            *((name, pa.string()) for name in TEXTS),
            ("rate", pa.float64()),
            *((name, pa.int64()) for name in ("concurrency", "seed", "num_prompts", "users", "warmup")),
            *((name, pa.int64()) for name in COUNTS),
            *((name, pa.float64()) for name in (*RATES, *MEMORY, *MACHINE, "cache_hit_share")),
            *((name, pa.bool_()) for name in ("overloaded", "disturbed", "cached")),
            *((f"{name}_{statistic}", pa.float64()) for name in OF_REQUESTS for statistic in STATISTICS),
        ]
    )
    return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)


def run_row(folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Return a row for ``runs_table``.

    Raises:
        ValueError: the run has no summary, and its requests are damaged.
    """
    summary = stored_summary(folder, info)
    memory, machine, cache = MemoryAccount.of(info), MachineAccount.of(info), CacheAccount.of(info)
    return {
        **_description(folder, info),
        **{name: getattr(summary, name) for name in (*COUNTS, *RATES, "overloaded")},
        **{name: getattr(memory, name, None) for name in MEMORY},
        **{name: getattr(machine, name, None) for name in MACHINE},
        "disturbed": getattr(machine, "busy", None),
        "cache_hit_share": getattr(cache, "hit_share", None),
        "cached": getattr(cache, "helped", None),
        "errors": json.dumps(summary.errors),
        "rejections": json.dumps(summary.rejections),
        "server_totals": json.dumps(summary.server_totals),
        **_statistics(summary),
    }


def _row(folder: Path) -> dict[str, Any]:
    return run_row(folder, read_info(folder))


def _description(folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, from run.json."""
    backend, work = info.get("backend") or {}, info.get("workload") or {}
    environment, rate = info.get("environment") or {}, work.get("rate")
    return {
        **_texts(info, ("model", "started", "ended", "error", "fingerprint")),
        **_texts(backend, ("policy", "endpoint", "url")),
        **_texts(work, ("dataset", "arrivals", "prompts_fingerprint")),
        **_texts(environment, ("git_commit", "cpu")),
        "run": folder.name,
        "path": str(folder),
        "status": status_of(info),
        "backend": backend.get("name"),
        "settings": json.dumps(backend.get("settings") or {}),
        "rate": None if rate is None else float(rate),
        "concurrency": (work.get("arrival_process") or {}).get("concurrency"),
        **{name: work.get(name) for name in ("seed", "num_prompts", "users")},
        "warmup": info.get("warmup"),
        ANALYTIC_DEVICE: analytic_device(info),
    }


def _texts(data: dict[str, Any], names: Iterable[str]) -> dict[str, str | None]:
    return {name: None if data.get(name) is None else str(data[name]) for name in names}


def _statistics(summary: Summary) -> dict[str, float]:
    return {
        f"{name}_{statistic}": getattr(distribution, statistic)
        for name, distribution in summary.distributions.items()
        for statistic in STATISTICS
    }


def parquet_of(folder: Path, info: dict[str, Any]) -> Path | None:
    """Return the path of a complete run's requests.parquet.

    Returns None if the run is not complete, or if an older version wrote the file with other columns. Then
    requests.jsonl must be read.

    Raises:
        ValueError: the file is damaged.
    """
    import pyarrow.parquet as pq

    path = folder / TABLE_FILE
    if info.get("status") != "complete" or not path.is_file():
        return None
    try:
        schema = pq.read_schema(path)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    return path if schema.equals(record_schema()) else None


def requests_table(folder: Path, info: dict[str, Any]) -> pa.Table:
    """Return one row per request, in the workload's order; raises ValueError if the file is damaged."""
    import pyarrow as pa

    path = parquet_of(folder, info)
    if path is None:
        return pa.Table.from_batches(record_batches(read_records(folder)), record_schema())
    return read_table(path)


def requests_dataset(sources: Sequence[tuple[str, Path | pa.Table]]) -> ds.Dataset:
    """Return the requests of many runs, one row each, with a column ``run`` for the name of the run.

    A query reads only the Parquet files and columns that it needs.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds
    from pyarrow.fs import LocalFileSystem

    run = pa.field("run", pa.string())
    schema = pa.schema([run, *record_schema()])
    tables = [
        source.add_column(0, run, pa.repeat(pa.scalar(name, pa.string()), len(source)))
        for name, source in sources
        if not isinstance(source, Path)
    ]
    files = [(name, source) for name, source in sources if isinstance(source, Path)]
    parts: list[ds.Dataset] = [ds.dataset(pa.concat_tables([schema.empty_table(), *tables]))]
    if files:
        parts.append(
            ds.FileSystemDataset.from_paths(
                [path.resolve().as_posix() for _, path in files],
                schema=schema,
                format=ds.ParquetFileFormat(
                    default_fragment_scan_options=ds.ParquetFragmentScanOptions(
                        page_checksum_verification=True
                    )
                ),
                filesystem=LocalFileSystem(),
                partitions=[ds.field("run") == name for name, _ in files],
            )
        )
    return ds.UnionDataset(schema, parts)


def _described_requests(folder: Path) -> tuple[dict[str, Any], pa.Table]:
    info = read_info(folder)
    return _description(folder, info), with_metrics(requests_table(folder, info), info)


def with_metrics(requests: pa.Table, info: dict[str, Any]) -> pa.Table:
    """Add computed columns to the requests of a run.

    They are ``ok``, ``trimmed``, the metrics of each request, and a column ``server_...`` for each figure
    that the server reports.
    """
    import pyarrow as pa

    records = records_of(requests)
    window = trim_of(info).window(records)
    columns = {name: requests[name] for name in requests.column_names if name != "server"}
    columns["ok"] = pa.array([record.ok for record in records], pa.bool_())
    columns["trimmed"] = pa.array(
        [window is not None and not window[0] <= record.scheduled <= window[1] for record in records],
        pa.bool_(),
    )
    for metric in METRICS:
        if metric.of_request is not None and not metric.several_per_request:
            columns[metric.key] = pa.array([_value(metric, record) for record in records], pa.float64())
    for name in dict.fromkeys(name for record in records for name in record.server or {}):
        reported = [(record.server or {}).get(name) for record in records]
        columns[f"server_{name}"] = pa.array(reported, pa.float64())
    return pa.table(columns)


def _value(metric: Metric, record: RequestRecord) -> float | None:
    """Return a metric of a request. As in a summary, only a request answered in full has a latency."""
    if metric.of_request is None or not (metric.every_request or record.ok):
        return None
    return next(iter(metric.of_request(record)), None)
