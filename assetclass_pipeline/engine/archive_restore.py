"""An archive made a table again, for those who must undo what was dropped.

Belongs here: reading a file back into the shape of a backup table, and proving it. Does not: the
restore from that table, which is the operators' guide's.
"""

from uuid import UUID

from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.archive import archives
from assetclass_pipeline.engine.backups import (
    Content,
    content_of,
    registered,
    remember,
    was_altered,
)
from assetclass_pipeline.engine.operations import as_uuid, get_operation
from assetclass_pipeline.errors import ArchiveError, NotUndoableError, OperationStateError
from assetclass_pipeline.model.backup import Archive, ArchiveState, RestoredArchive
from assetclass_pipeline.settings import Settings

_COLUMNS = ["seq", "id", "symbol", "timestamp", "asset_class", "corrected_asset_class"]


def restore_archive(
    connection: Connection[TupleRow], settings: Settings, correction_id: str, *, by: str
) -> RestoredArchive:
    """Make a table of an operation's archive, outside the names that count as backups.

    Its checksum must be the one that the backup table had, where it had one. Raises
    OperationNotFoundError, NotUndoableError where there is no archive, ArchiveError for a file
    that is missing, altered or does not fit, and OperationStateError while such a table exists.
    """
    # `backups list` shares this module's command, and need not wait for pyarrow.
    from assetclass_pipeline.engine.archive_file import as_csv

    key = as_uuid(correction_id)
    file = _archive_of(connection, settings, correction_id)
    tables = inspect_market_tables(connection, settings, for_writing=False)
    name = f"archived_{key.hex}"
    table = sql.Identifier("assetclass", name)
    timeout = f"{round(settings.session.scan_timeout * 1000)}ms"
    try:
        with transaction(connection, settings, statement_timeout=timeout) as cursor:
            cursor.execute(
                query(
                    "backups",
                    "create_restored",
                    table=table,
                    id_type=sql.SQL(tables.id_type),
                    symbol_type=sql.SQL(tables.symbol_type),
                    timestamp_type=sql.SQL(tables.timestamp_type),
                    asset_class_type=sql.SQL(tables.asset_class_type),
                )
            )
            with cursor.copy(query("backups", "fill_restored", table=table)) as copying:
                for chunk in as_csv(settings.archive / file.file_name, _COLUMNS):
                    copying.write(chunk)
            cursor.execute(query("plan", "number_rows", backup=table))
            content = content_of(cursor, table)
            noted = registered(cursor, key)
            checksum = noted[0].checksum if noted else None
            _require_same(file, content, checksum)
            remember(cursor, key, "archive_restored", by, {"table": f"assetclass.{name}"})
    except errors.DuplicateTable:
        raise OperationStateError(
            f"Table assetclass.{name} is there already. Use it, or drop it and try again."
        ) from None
    except (errors.DataError, errors.IntegrityError) as error:
        raise ArchiveError(
            f"A value of {file.file_name} does not fit the market table of today: "
            f"{error.diag.message_primary}. Nothing was kept."
        ) from None
    return RestoredArchive(
        correction_id=correction_id,
        table=f"assetclass.{name}",
        records=content.records,
        proved=was_altered(checksum, content) is not None,
    )


def _archive_of(
    connection: Connection[TupleRow], settings: Settings, correction_id: str
) -> Archive:
    key: UUID = as_uuid(correction_id)
    with transaction(connection, settings, read_only=True) as cursor:
        found = archives(cursor, settings, key, thoroughly=True)
    if not found or found[0].state is ArchiveState.REMOVED:
        get_operation(connection, settings, correction_id)
        gone = "was removed after its retention" if found else "does not exist"
        raise NotUndoableError(
            f"The archive of operation {correction_id} {gone}. `assetclass backups list` shows "
            "what there is."
        )
    if found[0].state is not ArchiveState.PRESENT:
        raise ArchiveError(
            f"The archive {settings.archive / found[0].file_name} of operation {correction_id} is "
            f"{found[0].state}. Copy it back there from your own copies, then try again."
        )
    return found[0]


def _require_same(file: Archive, content: Content, checksum: str | None) -> None:
    if content.records != file.records or was_altered(checksum, content):
        raise ArchiveError(
            f"{file.file_name} does not hold what its table held when it was written. Nothing was "
            "kept."
        )
