"""All runs as two tables to ask in SQL: ``runs`` and ``requests``.

Sealed: a query sees the tables and nothing else of the machine, and changes nothing. Arrow reads the Parquet
files of the runs, from a list that is made before, so DuckDB needs no access to files at all.
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
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Database:
    """The runs under a folder, as they were when it was opened. A context: it closes."""

    def __init__(self, root: Path, left_out: Callable[[str], None] = lambda sentence: None) -> None:
        """``left_out`` gets a sentence for each damaged run."""
        import duckdb

        self._left_out = left_out
        self._found = readable(_row_and_requests, find_runs(root), left_out)
        self._connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:")
        self._register()
        for sentence in SEAL:
            self._connection.execute(sentence)

    def ask(self, query: str) -> QueryResult:
        """One SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN).

        Raises:
            ValueError: it is something else, or DuckDB does not take it; says why.
        """
        import duckdb

        if len(query) > MAX_CHARACTERS:
            raise ValueError(f"a query of {len(query)} characters is too long")
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
        """Leaves out the runs whose Parquet file is damaged behind its beginning and its end, which only
        reading all of it shows. Whether there were any."""
        sources = [source for _, source in self._found if isinstance(source, Path)]
        whole = readable(_read_whole, sources, self._left_out)
        if len(whole) == len(sources):
            return False
        self._found = [
            (row, source) for row, source in self._found if not isinstance(source, Path) or source in whole
        ]
        self._register()
        return True

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


def _row_and_requests(folder: Path) -> tuple[dict[str, Any], Path | pa.Table]:
    """A row of ``runs``, and where the run's requests are."""
    info = read_info(folder)
    return run_row(folder, info), parquet_of(folder, info) or requests_table(folder, info)


def _read_whole(path: Path) -> Path:
    """The same path. Raises ValueError where the file is damaged anywhere."""
    read_table(path)
    return path
