"""The archive: one Parquet file for the rows of each operation whose table is gone.

Belongs here: writing a file so that a crash leaves none or a whole one, proving that it holds what
the table held, finding a row in it. Does not: the format (archive_file.py, imported by those who
open a file), deciding which table goes (backup_cleanup.py).
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.audit import remember
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.errors import ArchiveError
from assetclass_pipeline.model.backup import Archive, ArchiveState
from assetclass_pipeline.settings import Settings

if TYPE_CHECKING:
    from assetclass_pipeline.engine.archive_file import Difference

# Rows of a chunk, and of a row group: what is in memory at once, and what a look-up reads.
CHUNK = 65_536
FORMAT_VERSION = "1"
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

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return {
            "correctionId": str(self.correction_id),
            "kind": self.kind,
            "formatVersion": FORMAT_VERSION,
            "sourceTable": f"{self.schema_name}.{self.table_name}",
        }


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
    # Whoever only asks what archives there are need not wait for pyarrow.
    from assetclass_pipeline.engine.archive_file import Rows, difference, write

    directory = require_directory(settings)
    rows = Rows(connection, settings, source.correction_id, source.identifier, CHUNK, check)
    name = f"{source.correction_id}{_SUFFIX}"
    with _readable(directory), _partial_file(directory, name) as partial:
        records = write(partial, rows, source.metadata)
        if expected not in (None, records):
            raise ArchiveError(
                f"The table of operation {source.correction_id} holds {records:,} of the "
                f"{expected:,} rows that were planned: a crash of the server empties one that is "
                "no backup. What was corrected stays; those rows cannot be archived any more."
            )
        _require_same(source, difference(partial, rows))
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        size = partial.stat().st_size
        partial.replace(directory / name)
        _sync_directory(directory)
    return ArchiveFile(name, records, size, digest)


def _require_same(source: Source, found: "Difference | None") -> None:
    """Raises ArchiveError unless the file holds what the table holds."""
    if found is None:
        return
    if found is found.ROWS_REMOVED:
        raise ArchiveError(
            f"Rows of {source.table_name} were removed while they were archived. Nothing "
            "was dropped; try again."
        )
    raise ArchiveError(
        f"The archive of operation {source.correction_id} does not hold what its "
        f"table {source.table_name} holds: somebody changes that table, or the "
        "disk does not keep what is written. Nothing was dropped; try again."
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
    except OSError as error:
        said = error.strerror or str(error).splitlines()[0]
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
    # As above.
    from assetclass_pipeline.engine.archive_file import matching

    with _readable(settings.archive):
        return [ArchivedRow(**row) for row in matching(path, row_id)]


def remove_expired(
    connection: Connection[TupleRow], settings: Settings, *, by: str, dry_run: bool
) -> list[str]:
    """Remove files beyond their retention; returns their names, or those it would remove.

    With a file goes the last that is known by row: who removed it stands in the audit log.
    """
    with transaction(connection, settings) as cursor:
        expired = cursor.execute(query("backups", "expired_archives")).fetchall()
    if dry_run:
        return [name for _, name in expired]
    for correction_id, name in expired:
        with _readable(settings.archive):
            (settings.archive / name).unlink(missing_ok=True)
        # After it: whoever dies in between finds the file gone, and notes it the next time.
        with transaction(connection, settings) as cursor:
            key = {"correction_id": correction_id}
            if cursor.execute(query("backups", "note_removed"), key).rowcount:
                remember(cursor, correction_id, "archive_removed", by, {"file": name})
    return [name for _, name in expired]
