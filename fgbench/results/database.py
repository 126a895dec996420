"""Answers SQL queries over all runs, with the tables ``runs`` and ``requests``.

Queries are sandboxed: they see only these tables and cannot change anything. Arrow reads the runs' Parquet
files, from a list made before the query, so DuckDB needs no access to files.

    with Database(Path("results")) as database:
        database.ask("SELECT backend, count(*) FROM runs GROUP BY ALL").rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.results.frames import (
    parquet_of,
    requests_dataset,
    requests_table,
    run_row,
    runs_table,
)
from fgbench.results.run import find_runs, read_info, readable
from fgbench.results.table import read_table

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
MAX_CHARACTERS = 100_000
EXAMPLE = (
    "SELECT backend, rate, count(*) AS n, avg((last_token - scheduled) / requests.output_tokens) AS latency "
    "FROM requests JOIN runs USING (run) WHERE requests.error IS NULL AND requests.rejected IS NULL "
    "GROUP BY ALL ORDER BY rate, backend"
)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The answer to a query."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Database:
    """The runs under a folder, as of the time of opening. Use it as a context manager."""

    def __init__(self, root: Path, left_out: Callable[[str], None] = lambda sentence: None) -> None:
        """Open the runs under ``root``; ``left_out`` is called with a sentence for each damaged run."""
        import duckdb

        self._left_out = left_out
        self._found = readable(_row_and_requests, find_runs(root), left_out)
        self._connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:")
        self._register()
        for statement in SEAL:
            self._connection.execute(statement)

    def ask(self, query: str) -> QueryResult:
        """Run one SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN) and return its result.

        Raises:
            ValueError: ``query`` is something else, or DuckDB rejects it; the message says why.
        """
        import duckdb

        if len(query) > MAX_CHARACTERS:
            raise ValueError(f"a query of {len(query)} characters is too long: at most {MAX_CHARACTERS:,}")
        try:
            statements = self._connection.extract_statements(query)
            readers = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
            if len(statements) != 1 or statements[0].type not in readers:
                raise ValueError(f"results sql answers one SELECT; for example: {EXAMPLE}")
            try:
                return self._result(statements[0])
            except duckdb.Error:
                if not self._leave_out_damaged():
                    raise
            return self._result(statements[0])
        except duckdb.Error as error:
            raise ValueError(f"the query does not work: {error}") from None

    def _result(self, statement: duckdb.Statement) -> QueryResult:
        done = self._connection.execute(statement)
        columns = tuple(column[0] for column in done.description or ())
        return QueryResult(columns, done.fetchall())

    def _register(self) -> None:
        requests = requests_dataset([(str(row["run"]), source) for row, source in self._found])
        self._connection.register("runs", runs_table([row for row, _ in self._found]))
        self._connection.register("requests", requests)

    def _leave_out_damaged(self) -> bool:
        """Leave out the runs whose Parquet file is damaged; return whether there were any.

        Opening a file checks only its start and its end. To find damage elsewhere, it must be read
        completely.
        """
        sources = [source for _, source in self._found if isinstance(source, Path)]
        intact = readable(_checked, sources, self._left_out)
        if len(intact) == len(sources):
            return False
        self._found = [
            (row, source) for row, source in self._found if not isinstance(source, Path) or source in intact
        ]
        self._register()
        return True

    def schema(self) -> dict[str, list[tuple[str, str]]]:
        """Return the columns of each table as (name, type)."""
        return {
            table: [(row[0], row[1]) for row in self.ask(f"DESCRIBE {table}").rows]
            for table in ("runs", "requests")
        }

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()


def _row_and_requests(folder: Path) -> tuple[dict[str, Any], Path | pa.Table]:
    """Return the row of ``runs``, and the run's requests: a Parquet file or a table."""
    info = read_info(folder)
    return run_row(folder, info), parquet_of(folder, info) or requests_table(folder, info)


def _checked(path: Path) -> Path:
    """Return ``path``; raises ValueError if any part of the file is damaged."""
    read_table(path)
    return path
