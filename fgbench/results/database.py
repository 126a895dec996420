"""All runs as two tables to ask in SQL: ``runs`` and ``requests``.

Sealed: a query sees the tables and nothing else of the machine, and changes nothing. Arrow reads the Parquet
files of the runs, from a list that is made before, so DuckDB needs no access to files at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.results.frames import parquet_of, requests_dataset, requests_table, run_row, runs_table
from fgbench.results.run import find_runs, read_info, readable

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

        found = readable(_row_and_requests, find_runs(root), left_out)
        requests = requests_dataset([(str(row["run"]), source) for row, source in found])
        self._connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:")
        self._connection.register("runs", runs_table([row for row, _ in found]))
        self._connection.register("requests", requests)
        for sentence in SEAL:
            self._connection.execute(sentence)

    def ask(self, query: str) -> QueryResult:
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
            return QueryResult(columns, done.fetchall())
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


def _row_and_requests(folder: Path) -> tuple[dict[str, Any], Path | pa.Table]:
    """A row of ``runs``, and where the run's requests are."""
    info = read_info(folder)
    return run_row(folder, info), parquet_of(folder, info) or requests_table(folder, info)
