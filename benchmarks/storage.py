"""What a correction leaves on the disk: bytes a corrected row of the backup and of the ledger."""

from psycopg import sql

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.options import CorrectionOptions
from benchmarks.bench import Bench
from benchmarks.contest import PhaseClock, correct_all
from benchmarks.databases import settings_for
from benchmarks.measures import Findings, Measure

ROWS = 3_000_000
_SIZE = "SELECT pg_total_relation_size(%s::regclass)"


def measure(bench: Bench) -> Findings:
    """Backup with its index, and ledger, against the market table with its indexes."""
    rows = bench.size(ROWS)
    with bench.databases.clone(bench.template(rows)) as dsn:
        operation = correct_all(dsn, CorrectionOptions(), PhaseClock())
        bench.progress(f"{rows:,} rows, storage: corrected")
        return Findings(_sizes(dsn, operation, rows))


def _sizes(dsn: str, operation: Operation, rows: int) -> list[Measure]:
    settings = settings_for(dsn)
    if operation.backup_table is None:
        raise RuntimeError(f"Operation {operation.correction_id} has no backup table.")
    with connect(dsn, settings, purpose="benchmark") as connection:
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
