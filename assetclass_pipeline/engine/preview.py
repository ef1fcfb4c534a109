"""A preview: exactly which rows a correction would change, and roughly how long it would take."""

import time

from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import scan
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.conditions import blanks_of, correctable_rows
from assetclass_pipeline.engine.estimation import estimate_seconds, recent_rate
from assetclass_pipeline.engine.preflight import preflight
from assetclass_pipeline.model.months import EVERYTHING, TimeRange
from assetclass_pipeline.model.operation import Change
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.pacing import PROFILES, size_range
from assetclass_pipeline.model.preview import ClassChange, Preview, PreviewSample
from assetclass_pipeline.settings import Settings

MOST_SAMPLES = 50
MOST_SYMBOLS = 100


def preview(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    options: CorrectionOptions,
    *,
    scope: TimeRange = EVERYTHING,
) -> Preview:
    """What a correction with `options` would change in `scope`, counted in one snapshot.

    With `maxRecordsToProcess` the number of rows is capped, the breakdown shows all of them. The
    preflight rehearses a batch and rolls it back where this role and server let it.
    """
    rows = correctable_rows(tables, options, scope, columns="sample_columns")
    values = {**rows.values, "blanks": blanks_of(connection), "most": MOST_SAMPLES}
    with (
        scan(connection, settings, snapshot=True) as plain,
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        rate = recent_rate(plain)
        started = time.monotonic()
        counted = cursor.execute(
            query("plan", "count_changes", correctable_rows=rows.text), values
        ).fetchall()
        scan_seconds = time.monotonic() - started
        sampled = cursor.execute(
            query("plan", "sample_rows", correctable_rows=rows.text), values
        ).fetchall()
    symbols = [
        Change(
            symbol=row["symbol"],
            from_=row["asset_class"],
            to=row["corrected_asset_class"],
            records=row["records"],
        )
        for row in counted
    ]
    found = sum(change.records for change in symbols)
    records = min(found, options.max_records_to_process or found)
    batch_size = options.batch_size or size_range(records)[0]
    changes = _by_class(symbols)
    checked = preflight(
        connection,
        tables,
        settings,
        options,
        new_classes=_rows_by_new_class(changes),
        records=records,
        scope=scope,
        history_rate=rate,
        scan_seconds=scan_seconds,
        pause_share=PROFILES[options.pace].pause_share,
    )
    return Preview(
        records=records,
        batches=-(-records // batch_size),
        batch_size=batch_size,
        workers=options.worker_count,
        estimated_seconds=checked.estimated_seconds or estimate_seconds(records, rate),
        samples=[
            PreviewSample(
                id=row["id"],
                symbol=row["symbol"],
                timestamp=row["timestamp"],
                before=row["asset_class"],
                after=row["corrected_asset_class"],
            )
            for row in sampled
        ],
        changes=changes,
        symbols=symbols[:MOST_SYMBOLS],
        risks=_risks(options, symbols, found),
        preflight=checked,
    )


def _by_class(symbols: list[Change]) -> list[ClassChange]:
    sums: dict[tuple[str | None, str], int] = {}
    for change in symbols:
        pair = (change.from_, change.to or "")
        sums[pair] = sums.get(pair, 0) + change.records
    ranked = sorted(sums.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1]))
    return [ClassChange(from_=before, to=after, records=n) for (before, after), n in ranked]


def _rows_by_new_class(changes: list[ClassChange]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for change in changes:
        sums[change.to] = sums.get(change.to, 0) + change.records
    return sums


def _risks(options: CorrectionOptions, symbols: list[Change], found: int) -> list[str]:
    risks = []
    if not options.create_backup:
        risks.append("createBackup is false: this correction cannot be undone.")
    overwritten = sum(change.records for change in symbols if change.from_)
    if overwritten:
        risks.append(f"{overwritten:,} existing values are overwritten; look at the samples first.")
    if options.max_records_to_process and found > options.max_records_to_process:
        risks.append(
            f"maxRecordsToProcess stops after {options.max_records_to_process:,} rows; "
            f"{found - options.max_records_to_process:,} correctable rows are left."
        )
    if options.target_symbols:
        known = {change.symbol for change in symbols}
        if unknown := [name for name in options.target_symbols if name not in known]:
            risks.append(
                "Nothing to correct for: " + ", ".join(unknown[:10]) + ". Check how they are "
                "written in symbols.ticker and market_data.symbol."
            )
    return risks
