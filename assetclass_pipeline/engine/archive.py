"""The archive: one Parquet file for the rows of each operation whose table is gone.

Belongs here: writing a file so that a crash leaves none or a whole one, proving that it holds what
the table held, finding a row in it. Does not: deciding which table goes (backup_cleanup.py).
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, dict_row
from pyarrow import csv

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.errors import ArchiveError
from assetclass_pipeline.model.backup import Archive, ArchiveState
from assetclass_pipeline.settings import Settings

# Rows of a chunk, and of a row group: what is in memory at once, and what a look-up reads.
CHUNK = 65_536
FORMAT_VERSION = "1"
_TEXTS = ("id", "symbol", "timestamp", "asset_class", "corrected_asset_class", "skipped")
_COPIED = pa.schema([("seq", pa.int64()), *((name, pa.string()) for name in _TEXTS)])
SCHEMA = _COPIED.append(pa.field("committed_at", pa.timestamp("us", tz="UTC")))
# Few values each, often repeated; an id and a time are nearly always another one.
_WITH_DICTIONARY = ["symbol", "asset_class", "corrected_asset_class", "skipped"]
_SUFFIX = ".parquet"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Source:
    """The table of one operation, which is to be kept as a file."""

    correction_id: UUID
    kind: str
    schema_name: str
    table_name: str

    @property
    def identifier(self) -> sql.Identifier:
        """The table."""
        return sql.Identifier(self.schema_name, self.table_name)


@dataclass(frozen=True)
class ArchiveFile:
    """A file that is on the disk and was proved to hold every row of its table."""

    file_name: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ArchivedRow:
    """What an operation did to one row; `skipped` is the reason when it did not write it.

    All values as PostgreSQL writes them (times in UTC). `committed_at` is of the batch that took
    the row; a row that was locked then was written by a sweep a little later.
    """

    seq: int
    id: str | None
    symbol: str | None
    timestamp: str | None
    asset_class: str | None
    corrected_asset_class: str | None
    skipped: str | None
    committed_at: datetime | None


def require_directory(settings: Settings) -> Path:
    """The archive's directory, made if need be. Raises ArchiveError where we cannot write."""
    directory = settings.archive
    with _readable(directory):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError("this user may not write there")
    return directory


def write_archive(
    connection: Connection[TupleRow],
    settings: Settings,
    source: Source,
    *,
    expected: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> ArchiveFile:
    """Write the rows of a table that nobody changes any more; a file of an earlier try is replaced.

    Chunks are read in short transactions, `check` is called between them; the file appears under
    its name only when it was read back, row by row equal to the table. Raises ArchiveError, also
    where the table does not hold the `expected` number of rows.
    """
    directory = require_directory(settings)
    rows = _Rows(connection, settings, source, check)
    name = f"{source.correction_id}{_SUFFIX}"
    with _readable(directory), _partial_file(directory, name) as partial:
        records = _write(partial, rows)
        if expected not in (None, records):
            raise ArchiveError(
                f"The table of operation {source.correction_id} holds {records:,} of the "
                f"{expected:,} rows that were planned: a crash of the server empties one that is "
                "no backup. What was corrected stays; those rows cannot be archived any more."
            )
        _prove(partial, rows)
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        size = partial.stat().st_size
        partial.replace(directory / name)
        _sync_directory(directory)
    return ArchiveFile(name, records, size, digest)


@dataclass(frozen=True)
class _Rows:
    """The table's rows as they are archived, chunk by chunk."""

    connection: Connection[TupleRow]
    settings: Settings
    source: Source
    check: Callable[[], None]

    def chunks(self) -> Iterator[Any]:
        """Tables of 1 to CHUNK rows in the order of seq."""
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            row = cursor.execute(
                query("backups", "seqs_of", backup=self.source.identifier)
            ).fetchone()
        first, last = row or (None, None)
        if first is None or last is None:
            return
        for start in range(first, last + 1, CHUNK):
            self.check()
            rows = self.chunk(start, start + CHUNK - 1)
            if rows.num_rows:
                yield rows

    def chunk(self, first_seq: int, last_seq: int) -> pa.Table:
        """The rows of [first_seq, last_seq]."""
        values = {
            "correction_id": self.source.correction_id,
            "first_seq": first_seq,
            "last_seq": last_seq,
        }
        statement = query("backups", "copy_rows", backup=self.source.identifier)
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            with cursor.copy(statement, values) as copied:
                text = b"".join(bytes(block) for block in copied)
            batches = cursor.execute(query("backups", "batches_of"), values).fetchall()
        copied_rows = _parsed(text)
        return copied_rows.append_column(
            SCHEMA.field("committed_at"), _commit_times(copied_rows["seq"], batches)
        )


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


def _write(partial: Path, rows: _Rows) -> int:
    source = rows.source
    named = SCHEMA.with_metadata(
        {
            "correctionId": str(source.correction_id),
            "kind": source.kind,
            "formatVersion": FORMAT_VERSION,
            "sourceTable": f"{source.schema_name}.{source.table_name}",
        }
    )
    records = 0
    with pq.ParquetWriter(
        partial, named, compression="zstd", use_dictionary=_WITH_DICTIONARY
    ) as writer:
        for chunk in rows.chunks():
            writer.write_table(chunk.cast(named), row_group_size=CHUNK)
            records += chunk.num_rows
    return records


def _prove(partial: Path, rows: _Rows) -> None:
    """Read the file back beside the table: each row group must be equal, and none be missing."""
    with pq.ParquetFile(partial) as written:
        groups = iter(range(written.num_row_groups))
        for chunk in rows.chunks():
            group = next(groups, None)
            kept = None if group is None else written.read_row_group(group)
            if kept is None or not kept.replace_schema_metadata(None).equals(chunk):
                raise ArchiveError(
                    f"The archive of operation {rows.source.correction_id} does not hold what its "
                    f"table {rows.source.table_name} holds: somebody changes that table, or the "
                    "disk does not keep what is written. Nothing was dropped; try again."
                )
        if next(groups, None) is not None:
            raise ArchiveError(
                f"Rows of {rows.source.table_name} were removed while they were archived. Nothing "
                "was dropped; try again."
            )


@contextmanager
def _partial_file(directory: Path, name: str) -> Iterator[Path]:
    """A file beside the one that it becomes; whatever a killed process left of it goes."""
    for leftover in directory.glob(f"{name}.*{_PARTIAL}"):
        leftover.unlink(missing_ok=True)
    descriptor, path = tempfile.mkstemp(prefix=f"{name}.", suffix=_PARTIAL, dir=directory)
    os.close(descriptor)
    try:
        yield Path(path)
    finally:
        Path(path).unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    # Where a directory cannot be opened (Windows), the file system sees to it.
    with suppress(PermissionError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _readable(directory: Path) -> Iterator[None]:
    """What the disk or the format refuse, as a sentence."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        said = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ArchiveError(
            f"The archive in {directory} cannot be used: {said}. Make it writable, with room for "
            "the rows (about 10 bytes each), or name another directory in "
            "ASSETCLASS_ARCHIVE_DIRECTORY; then run it again."
        ) from None


def register_archive(
    cursor: Cursor[TupleRow], settings: Settings, correction_id: UUID, file: ArchiveFile
) -> None:
    """Note a file in the transaction that drops its table."""
    cursor.execute(
        query("backups", "register_archive"),
        {
            "correction_id": correction_id,
            "file_name": file.file_name,
            "records": file.records,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "days": settings.archive_retention_days,
        },
    )


def archives(
    cursor: Cursor[TupleRow],
    settings: Settings,
    correction_id: UUID | None = None,
    *,
    thoroughly: bool = False,
) -> list[Archive]:
    """Every registered file, newest first, or the one of an operation.

    A file of another size is altered; `thoroughly` reads each file and compares its SHA-256.
    """
    with cursor.connection.cursor(row_factory=dict_row) as named:
        rows = named.execute(
            query("backups", "archives"), {"correction_id": correction_id}
        ).fetchall()
    return [Archive(**row, state=_state(settings, row, thoroughly=thoroughly)) for row in rows]


def _state(settings: Settings, row: dict[str, Any], *, thoroughly: bool) -> ArchiveState:
    if row["removed_at"] is not None:
        return ArchiveState.REMOVED
    path = settings.archive / row["file_name"]
    try:
        if path.stat().st_size != row["bytes"]:
            return ArchiveState.ALTERED
        if thoroughly:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != row["sha256"]:
                    return ArchiveState.ALTERED
    except OSError:
        return ArchiveState.MISSING
    return ArchiveState.PRESENT


def find_rows(
    settings: Settings, connection: Connection[TupleRow], correction_id: str, row_id: str
) -> list[ArchivedRow]:
    """What an operation did to the rows of one id, from its archive; empty where it has none.

    Raises ArchiveError for a file that is registered and missing, or that is no archive.
    """
    with transaction(connection, settings, read_only=True) as cursor:
        found = archives(cursor, settings, as_uuid(correction_id))
    if not found or found[0].state is ArchiveState.REMOVED:
        return []
    path = settings.archive / found[0].file_name
    if found[0].state is ArchiveState.MISSING:
        raise ArchiveError(
            f"The archive {path} of operation {correction_id} is missing. Copy it back there from "
            "your own copies, or name its directory in ASSETCLASS_ARCHIVE_DIRECTORY."
        )
    with _readable(settings.archive), pq.ParquetFile(path) as file:
        return [ArchivedRow(**row) for row in _matching(file, row_id)]


def _matching(file: pq.ParquetFile, row_id: str) -> Iterator[dict[str, Any]]:
    """Rows of one id: of each row group that may have it the ids are read, then only its rows."""
    column = file.schema_arrow.get_field_index("id")
    for group in range(file.num_row_groups):
        bounds = file.metadata.row_group(group).column(column).statistics
        if bounds is not None and bounds.has_min_max and not bounds.min <= row_id <= bounds.max:
            continue
        ids = file.read_row_group(group, columns=["id"])["id"]
        places = pc.indices_nonzero(pc.fill_null(pc.equal(ids, row_id), fill_value=False))
        if len(places):
            yield from file.read_row_group(group).take(places).to_pylist()


def remove_expired(
    connection: Connection[TupleRow], settings: Settings, *, dry_run: bool
) -> list[str]:
    """Remove files beyond their retention; returns their names, or those it would remove."""
    with transaction(connection, settings) as cursor:
        expired = cursor.execute(query("backups", "expired_archives")).fetchall()
    if dry_run:
        return [name for _, name in expired]
    for correction_id, name in expired:
        with _readable(settings.archive):
            (settings.archive / name).unlink(missing_ok=True)
        # After it: whoever dies in between finds the file gone, and notes it the next time.
        with transaction(connection, settings) as cursor:
            cursor.execute(query("backups", "note_removed"), {"correction_id": correction_id})
    return [name for _, name in expired]
