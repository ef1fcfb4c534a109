"""The file of an archive: the rows of one table as Parquet.

Belongs here: writing the file, comparing it with its table, finding rows in it; and pyarrow, which
is imported nowhere else: it costs a fifth of a second, and few commands ever open such a file.
Does not: where files are and what is known of them (archive.py).
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import Connection, sql
from psycopg.rows import TupleRow
from pyarrow import csv

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.settings import Settings

_TEXTS = ("id", "symbol", "timestamp", "asset_class", "corrected_asset_class", "skipped")
_COPIED = pa.schema([("seq", pa.int64()), *((name, pa.string()) for name in _TEXTS)])
SCHEMA = _COPIED.append(pa.field("committed_at", pa.timestamp("us", tz="UTC")))
# Few values each, often repeated; an id and a time are nearly always another one.
_WITH_DICTIONARY = ["symbol", "asset_class", "corrected_asset_class", "skipped"]


class Difference(Enum):
    """What makes a file another thing than its table."""

    ROWS_DIFFER = auto()
    ROWS_REMOVED = auto()


@dataclass(frozen=True)
class Rows:
    """An operation's table as it is archived; `size` rows are read at once."""

    connection: Connection[TupleRow]
    settings: Settings
    correction_id: UUID
    table: sql.Identifier
    size: int
    check: Callable[[], None]

    def chunks(self) -> Iterator[Any]:
        """Tables of 1 to `size` rows in the order of seq; `check` is called before each."""
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            row = cursor.execute(query("backups", "seqs_of", backup=self.table)).fetchone()
        first, last = row or (None, None)
        if first is None or last is None:
            return
        for start in range(first, last + 1, self.size):
            self.check()
            rows = self._chunk(start, start + self.size - 1)
            if rows.num_rows:
                yield rows

    def _chunk(self, first_seq: int, last_seq: int) -> pa.Table:
        """The rows of [first_seq, last_seq]."""
        values = {
            "correction_id": self.correction_id,
            "first_seq": first_seq,
            "last_seq": last_seq,
        }
        statement = query("backups", "copy_rows", backup=self.table)
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            with cursor.copy(statement, values) as copied:
                text = b"".join(bytes(block) for block in copied)
            batches = cursor.execute(query("backups", "batches_of"), values).fetchall()
        copied_rows = _parsed(text)
        return copied_rows.append_column(
            SCHEMA.field("committed_at"), _commit_times(copied_rows["seq"], batches)
        )


@contextmanager
def _as_system_errors() -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(str(error).splitlines()[0]) from error


@_as_system_errors()
def write(file: Path, rows: Rows, metadata: Mapping[str, str]) -> int:
    """Write all rows, a row group for each chunk; returns their number. Raises OSError."""
    named = SCHEMA.with_metadata(dict(metadata))
    records = 0
    with pq.ParquetWriter(
        file, named, compression="zstd", use_dictionary=_WITH_DICTIONARY
    ) as writer:
        for chunk in rows.chunks():
            writer.write_table(chunk.cast(named), row_group_size=rows.size)
            records += chunk.num_rows
    return records


@_as_system_errors()
def difference(file: Path, rows: Rows) -> Difference | None:
    """Read the file beside the table: each row group must be equal, and none be missing.

    Raises OSError.
    """
    with pq.ParquetFile(file) as written:
        groups = iter(range(written.num_row_groups))
        for chunk in rows.chunks():
            group = next(groups, None)
            kept = None if group is None else written.read_row_group(group)
            if kept is None or not kept.replace_schema_metadata(None).equals(chunk):
                return Difference.ROWS_DIFFER
        return None if next(groups, None) is None else Difference.ROWS_REMOVED


@_as_system_errors()
def matching(path: Path, row_id: str) -> list[dict[str, Any]]:
    """Rows of one id, by column. Raises OSError.

    Of each row group that may have it the ids are read, then only its rows.
    """
    found: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        column = file.schema_arrow.get_field_index("id")
        for group in range(file.num_row_groups):
            bounds = file.metadata.row_group(group).column(column).statistics
            if bounds is not None and bounds.has_min_max and not bounds.min <= row_id <= bounds.max:
                continue
            ids = file.read_row_group(group, columns=["id"])["id"]
            places = pc.indices_nonzero(pc.fill_null(pc.equal(ids, row_id), fill_value=False))
            if len(places):
                found += file.read_row_group(group).take(places).to_pylist()
    return found


def as_csv(path: Path, columns: list[str]) -> Iterator[bytes]:
    """The file as CSV that tells NULL from the empty string, a row group at a time."""
    options = csv.WriteOptions(include_header=False, quoting_style="all_valid")
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            text = io.BytesIO()
            csv.write_csv(file.read_row_group(group, columns=columns), text, options)
            yield text.getvalue()


def _parsed(text: bytes) -> pa.Table:
    if not text:
        return _COPIED.empty_table()
    return csv.read_csv(
        io.BytesIO(text),
        read_options=csv.ReadOptions(column_names=_COPIED.names, use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=_COPIED,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _commit_times(seqs: pa.ChunkedArray, batches: list[TupleRow]) -> pa.Array:
    """When the batch of each seq was committed; batches are ordered and do not overlap."""
    moment = SCHEMA.field("committed_at").type
    if not batches:
        return pa.nulls(len(seqs), moment)
    firsts, lasts, moments = (pa.array(column, pa.int64()) for column in zip(*batches, strict=True))
    place = pc.subtract(
        pc.search_sorted(firsts, seqs.combine_chunks(), side="right").cast(pa.int64()), 1
    )
    within = pc.if_else(pc.greater_equal(place, 0), place, None)
    is_covered = pc.less_equal(seqs.combine_chunks(), lasts.take(within))
    return pc.if_else(is_covered, moments.take(within), None).cast(moment)
