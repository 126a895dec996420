"""requests.parquet: one row per request of a run, as an Arrow table.

A run writes one when it ends. ``pack_table`` writes a smaller one, for runs that are published or archived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.metrics.record import RequestRecord
from fgengine.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

ROWS_PER_BATCH = 16_384
"""Rows converted to columns at a time. A million requests as rows and as columns would take gigabytes."""
DIGITS = 6
"""Decimal digits of ``token_times`` in a packed file: the client measures microseconds."""


def record_schema() -> pa.Schema:
    """Return the columns of requests.parquet, which are those of ``RequestRecord``."""
    import pyarrow as pa

    return pa.schema(
        [
            ("index", pa.int64()),
            ("scheduled", pa.float64()),
            ("sent", pa.float64()),
            ("prompt_tokens", pa.int64()),
            ("asked_tokens", pa.int64()),
            ("output_tokens", pa.int64()),
            ("first_token", pa.float64()),
            ("last_token", pa.float64()),
            ("token_times", pa.list_(pa.float64())),
            ("finished", pa.float64()),
            ("error", pa.string()),
            ("server", pa.map_(pa.string(), pa.float64())),
            ("user", pa.string()),
            ("rejected", pa.string()),
        ]
    )


def record_batches(records: Sequence[RequestRecord]) -> Iterator[pa.RecordBatch]:
    """Yield the records as batches of ``record_schema``, one row per request, in the workload's order."""
    import pyarrow as pa

    schema = record_schema()
    rows = sorted(records, key=lambda record: record.index)
    for first in range(0, len(rows), ROWS_PER_BATCH):
        batch = rows[first : first + ROWS_PER_BATCH]
        columns = {name: [getattr(record, name) for record in batch] for name in schema.names}
        columns["server"] = [list(server.items()) if server else None for server in columns["server"]]
        yield pa.RecordBatch.from_pydict(columns, schema=schema)


def write_table(path: Path, records: Sequence[RequestRecord]) -> None:
    """Write the records to requests.parquet."""
    import pyarrow.parquet as pq

    with (
        replacing(path) as partial,
        pq.ParquetWriter(partial, record_schema(), write_page_checksum=True) as table,
    ):
        for batch in record_batches(records):
            table.write_batch(batch)


def pack_table(path: Path, records: Sequence[RequestRecord]) -> None:
    """Write a smaller requests.parquet with the same values.

    For a real run, it has about a quarter of the bytes of requests.jsonl. Nearly all bytes of a run are
    ``token_times``. If they are integer microseconds, as the client's are, they become decimals with six
    digits, which Parquet stores as differences of integers. The times of a simulation are finer and remain
    floats.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    requests = pa.Table.from_batches(record_batches(records), record_schema())
    times = requests["token_times"].combine_chunks()
    encoding = "BYTE_STREAM_SPLIT"
    if np.array_equal(times.values.to_numpy(), _in_microseconds(times.values)):
        moments = times.values.cast(pa.decimal128(18, DIGITS), safe=False)
        times, encoding = pa.ListArray.from_arrays(times.offsets, moments), "DELTA_BINARY_PACKED"
    with replacing(path) as partial:
        pq.write_table(
            requests.set_column(requests.schema.get_field_index("token_times"), "token_times", times),
            partial,
            compression="zstd",
            compression_level=19,
            use_dictionary=["error", "user", "rejected", "server.key_value.key"],
            column_encoding={"token_times.list.element": encoding},
            store_decimal_as_integer=True,
            write_page_checksum=True,
        )


def read_table(path: Path) -> pa.Table:
    """Read requests.parquet, packed or not. Columns of ``record_schema`` that the file lacks are left out.

    Raises:
        ValueError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            requests = file.read()
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    if not is_packed(requests.schema):
        return requests
    times = requests["token_times"].combine_chunks()
    moments = _in_microseconds(times.values.cast(pa.float64()))  # a cast alone leaves a rounding error
    times = pa.ListArray.from_arrays(times.offsets, pa.array(moments))
    return requests.set_column(requests.schema.get_field_index("token_times"), "token_times", times)


def _in_microseconds(seconds: pa.Array) -> NDArray[Any]:
    """Return the seconds rounded to microseconds, each as the nearest float."""
    import numpy as np

    return np.asarray(np.rint(seconds.to_numpy() * 10**DIGITS) / 10**DIGITS)


def is_packed(schema: pa.Schema) -> bool:
    """Whether ``pack_table`` wrote a file of this schema."""
    import pyarrow as pa

    index = schema.get_field_index("token_times")
    return index >= 0 and bool(pa.types.is_decimal(schema.field(index).type.value_type))


def damaged(path: Path, error: Exception) -> ValueError:
    """Return the error for a damaged file: ``error`` is what the reader raised."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(
        f"{path} is damaged: {reason} Remove it to read the requests from requests.jsonl instead."
    )


def records_of(requests: pa.Table) -> list[RequestRecord]:
    """Convert the rows of a table to records."""
    columns = {name: requests[name].to_pylist() for name in requests.column_names if name != "token_times"}
    columns["server"] = [None if server is None else dict(server) for server in columns["server"]]
    times = requests["token_times"].combine_chunks()  # ten times as fast as to_pylist() of each list
    moments = times.values.to_numpy().tolist() if len(times) else []
    ends = times.offsets.to_pylist() if len(times) else [0]
    columns["token_times"] = [tuple(moments[first:end]) for first, end in pairwise(ends)]
    rows = zip(*columns.values(), strict=True)
    return [RequestRecord(**dict(zip(columns, row, strict=True))) for row in rows]
