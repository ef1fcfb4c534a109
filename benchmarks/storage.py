"""What a correction leaves on the disk: bytes a corrected row of the backup and of the ledger."""

from psycopg import sql

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.operations import get_operation
from benchmarks.databases import settings_for
from benchmarks.measures import Measure

_SIZE = "SELECT pg_total_relation_size(%s::regclass)"


def measure_storage(dsn: str, correction_id: str, rows: int) -> list[Measure]:
    """Backup with its index, and ledger, against the market table with its indexes."""
    settings = settings_for(dsn)
    with connect(dsn, settings, purpose="benchmark") as connection:
        operation = get_operation(connection, settings, correction_id)
        if operation.backup_table is None:
            raise RuntimeError(f"Operation {correction_id} has no backup table.")
        backup = sql.Identifier(settings.market_schema, operation.backup_table)

        def bytes_of(table: str) -> int:
            return int(connection.execute(_SIZE, (table,)).fetchall()[0][0])

        market = bytes_of("market_data") / rows
        ledger = bytes_of("assetclass.operation_batch") / operation.records_corrected
        backed_up = bytes_of(backup.as_string(connection)) / operation.records_corrected
    return [
        Measure(
            f"{what}, {rows:,} rows, bytes a row, against the market table's",
            f"{size:.1f} B",
            f"{market:.0f} B",
            size / market,
        )
        for what, size in (("backup", backed_up), ("ledger", ledger))
    ]
