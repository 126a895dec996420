"""All runs as two tables to ask in SQL: ``runs`` and ``requests``. In memory and sealed: a query sees the
tables and nothing else of the machine, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.metrics.machine import MachineAccount
from fgbench.metrics.memory import MemoryAccount
from fgbench.metrics.metric import OF_REQUESTS
from fgbench.metrics.statistics import Distribution
from fgbench.metrics.summary import Summary
from fgbench.results.figures import summary_of
from fgbench.results.run import Run, find_runs, read_run, told
from fgbench.results.writer import record_schema

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SEAL = (
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)
MOST_CHARACTERS = 100_000
STATISTICS = tuple(f.name for f in fields(Distribution) if f.name != "count")
COUNTS = ("requests", "ok", "failed", "rejected", "prompt_tokens", "output_tokens", "server_requests")
RATES = (
    "duration_s",
    "request_throughput",
    "output_token_throughput",
    "total_token_throughput",
    "achieved_rate",
    "shortfall",
    "rejected_share",
)
MEMORY = ("pressure_seconds", "copy_wait_seconds", "copy_wait_share")
MACHINE = ("other_cores", "stolen_cores")
EXAMPLE = (
    "SELECT backend, rate, count(*) AS n, avg((last_token - scheduled) / requests.output_tokens) AS latency "
    "FROM requests JOIN runs USING (run) WHERE requests.error IS NULL AND requests.rejected IS NULL "
    "GROUP BY ALL ORDER BY rate, backend"
)


@dataclass(frozen=True, slots=True)
class Answer:
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Database:
    """The runs under a folder, as they were when it was opened. A context: it closes."""

    def __init__(self, root: Path, damaged: Callable[[str], None] = lambda sentence: None) -> None:
        """``damaged`` is told of the runs that cannot be read, which are left out."""
        import duckdb

        runs = [run for path in find_runs(root) if (run := told(read_run, path, damaged)) is not None]
        self._connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:")
        for name, table in (("runs", runs_table(runs)), ("requests", requests_table(runs))):
            self._connection.register("source", table)
            self._connection.execute(f"CREATE TABLE {name} AS SELECT * FROM source")
            self._connection.unregister("source")
        for sentence in SEAL:
            self._connection.execute(sentence)

    def ask(self, query: str) -> Answer:
        """One SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN).

        Raises:
            ValueError: it is something else, or DuckDB does not take it; says why.
        """
        import duckdb

        if len(query) > MOST_CHARACTERS:
            raise ValueError(f"a query of {len(query)} characters is too long")
        try:
            statements = self._connection.extract_statements(query)
            readers = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
            if len(statements) != 1 or statements[0].type not in readers:
                raise ValueError(f"results sql answers one SELECT; for example: {EXAMPLE}")
            done = self._connection.execute(statements[0])
            columns = tuple(column[0] for column in done.description or ())
            return Answer(columns, done.fetchall())
        except duckdb.Error as error:
            raise ValueError(f"the query does not work: {error}") from None

    def schema(self) -> dict[str, list[tuple[str, str]]]:
        """Each table's columns with their types."""
        return {
            table: [(row[0], row[1]) for row in self.ask(f"DESCRIBE {table}").rows]
            for table in ("runs", "requests")
        }

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()


def runs_table(runs: Sequence[Run]) -> pa.Table:
    """A row a run: what was run, and its summary, a distribution as ``ttft_mean``, ``ttft_p50``, ..."""
    import pyarrow as pa

    texts = (
        *("run", "path", "status", "backend", "policy", "model", "endpoint", "url", "dataset", "arrivals"),
        *("settings", "started", "ended", "error", "fingerprint", "prompts_fingerprint"),
        *("git_commit", "cpu", "errors", "rejections", "server_totals"),
    )
    kinds: list[tuple[str, Any]] = [
        *((name, pa.string()) for name in texts),
        ("rate", pa.float64()),
        *((name, pa.int64()) for name in ("seed", "num_prompts", "users", "warmup", *COUNTS)),
        *((name, pa.float64()) for name in (*RATES, *MEMORY, *MACHINE)),
        *((name, pa.bool_()) for name in ("overloaded", "disturbed")),
        *((f"{name}_{statistic}", pa.float64()) for name in OF_REQUESTS for statistic in STATISTICS),
    ]
    schema = pa.schema(kinds)
    rows = [_row(run) for run in runs]
    return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)


def requests_table(runs: Sequence[Run]) -> pa.Table:
    """A row a request, as in requests.parquet, with the name of its run."""
    import pyarrow as pa

    schema = record_schema()
    tables = []
    for run in runs:
        columns = {name: [getattr(record, name) for record in run.records] for name in schema.names}
        columns["server"] = [list(server.items()) if server else None for server in columns["server"]]
        table = pa.table(columns, schema=schema)
        tables.append(table.add_column(0, "run", pa.array([run.path.name] * len(table), pa.string())))
    empty = schema.empty_table().add_column(0, "run", pa.array([], pa.string()))
    return pa.concat_tables([empty, *tables])


def _row(run: Run) -> dict[str, Any]:
    backend, work = run.info.get("backend") or {}, run.info.get("workload") or {}
    environment, summary = run.info.get("environment") or {}, summary_of(run)
    memory, machine = MemoryAccount.of(run.info), MachineAccount.of(run.info)
    rate = work.get("rate")
    return {
        **_texts(run.info, ("model", "started", "ended", "error", "fingerprint")),
        **_texts(backend, ("policy", "endpoint", "url")),
        **_texts(work, ("dataset", "arrivals", "prompts_fingerprint")),
        **_texts(environment, ("git_commit", "cpu")),
        "run": run.path.name,
        "path": str(run.path),
        "status": run.status,
        "backend": backend.get("name"),
        "settings": json.dumps(backend.get("settings") or {}),
        "rate": None if rate is None else float(rate),
        **{name: work.get(name) for name in ("seed", "num_prompts", "users")},
        "warmup": run.info.get("warmup"),
        **{name: getattr(summary, name) for name in (*COUNTS, *RATES, "overloaded")},
        **{name: getattr(memory, name, None) for name in MEMORY},
        **{name: getattr(machine, name, None) for name in MACHINE},
        "disturbed": getattr(machine, "busy", None),
        "errors": json.dumps(summary.errors),
        "rejections": json.dumps(summary.rejections),
        "server_totals": json.dumps(summary.server_totals),
        **_distributions(summary),
    }


def _texts(data: dict[str, Any], names: Iterable[str]) -> dict[str, str | None]:
    return {name: None if data.get(name) is None else str(data[name]) for name in names}


def _distributions(summary: Summary) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, distribution in summary.distributions.items():
        found |= {f"{name}_{statistic}": getattr(distribution, statistic) for statistic in STATISTICS}
    return found
