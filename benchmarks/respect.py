"""Proof that a correction respected everybody who wrote beside it.

Belongs here: comparing the table with what the writers say they left. Does not: their latencies.
"""

import psycopg

from assetclass_pipeline.model.operation import Operation, SkipReason
from benchmarks.writers import BY_HAND, Report

_ROWS = "SELECT id, close, asset_class FROM market_data WHERE id = ANY (%s)"
_INSERTED = """
SELECT m.id, m.symbol, m.close, m.asset_class, s.asset_class
FROM market_data m JOIN symbols s ON s.ticker = m.symbol WHERE m.id = ANY (%s)
"""
_COUNT = "SELECT count(*) FROM market_data"
# Old rows that should have their symbol's class and do not.
_WRONG = """
SELECT count(*) FROM market_data m JOIN symbols s ON s.ticker = m.symbol
WHERE m.id <= %s AND m.id <> ALL (%s) AND m.asset_class IS DISTINCT FROM s.asset_class
"""
# Everything that a correction must leave alone, of the rows that no writer touched.
_LEFT_ALONE = """
SELECT count(*), bit_xor(hashint8extended(m.id, hashtextextended(
    concat_ws('/', m.symbol, m."timestamp", m.open, m.high, m.low, m.close, m.volume, m.created_at,
              CASE WHEN s.ticker IS NULL THEN coalesce(m.asset_class, 'NULL') END), 0)))
FROM market_data m LEFT JOIN symbols s ON s.ticker = m.symbol
WHERE m.id <= %s AND m.id <> ALL (%s)
"""


def require_respect(dsn: str, template_dsn: str, report: Report, operation: Operation) -> None:
    """Compare the corrected table with the writers' report and with the template.

    Raises RuntimeError that names everything that was lost, doubled, overwritten or left wrong.
    """
    deleted, by_hand = set(report.deleted), set(report.by_hand) - set(report.deleted)
    touched = sorted({*report.prices, *report.by_hand, *deleted})
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = {row[0]: row[1:] for row in connection.execute(_ROWS, (touched,))}
        inserted = {row[0]: row[1:] for row in connection.execute(_INSERTED, ([*report.inserted],))}
        rows = connection.execute(_COUNT).fetchall()[0][0]
        # A row that was locked each time that somebody looked has that reason; it is not wrong.
        wrong = connection.execute(_WRONG, (report.last_id, [*by_hand])).fetchall()[0][0]
        alone = connection.execute(_LEFT_ALONE, (report.last_id, touched)).fetchall()
    with psycopg.connect(template_dsn, autocommit=True) as connection:
        before = connection.execute(_LEFT_ALONE, (report.last_id, touched)).fetchall()
    prices = {row: price for row, price in report.prices.items() if row not in deleted}
    problems = {
        "deleted rows that are back": len(deleted & set(found)),
        "rows lost or doubled": abs(rows - (report.last_id + len(report.inserted) - len(deleted))),
        "prices overwritten": sum(
            row not in found or found[row][0] != price for row, price in prices.items()
        ),
        "classes overwritten": sum(row not in found or found[row][1] != BY_HAND for row in by_hand),
        "inserted bars lost or changed": sum(
            row not in inserted or not _is_as_inserted(inserted[row], wanted)
            for row, wanted in report.inserted.items()
        ),
        "rows with a wrong class": max(
            0, wrong - operation.skipped_by_reason.get(SkipReason.LOCKED, 0)
        ),
        "changes of rows that nobody touched": int(alone != before),
    }
    if any(problems.values()):
        raise RuntimeError(
            "The correction did not respect the writers: "
            + ", ".join(f"{number} {what}" for what, number in problems.items() if number)
        )


def _is_as_inserted(
    found: tuple[str, int, str | None, str], wanted: tuple[str, int, str | None]
) -> bool:
    """A bar that came in without a class may have its symbol's by now."""
    symbol, price, asset_class, right_class = found
    may_be = {wanted[2]} if wanted[2] is not None else {None, right_class}
    return (symbol, price) == wanted[:2] and asset_class in may_be
