"""The same job done in the ways that people do it without us, each against our default options.

Belongs here: one function for each way, and the limits. Does not: the bare UPDATE (contest.py),
which is a measure of cost, not a way to work on a table in use.
"""

from collections.abc import Callable

import pandas as pd
import psycopg
import sqlalchemy
from psycopg import sql

from assetclass_pipeline.model.options import CorrectionOptions
from benchmarks.bench import Bench
from benchmarks.contest import Contestant, Written, compete, engine, median_time
from benchmarks.measures import Findings, limited_ratio, seconds

ROWS = 1_000_000
BATCH = 1000

_COPY = "CREATE TABLE market_data_backup AS TABLE market_data"
_CORRECTABLE_IDS = """
SELECT m.id, s.asset_class
FROM market_data m JOIN symbols s ON s.ticker = m.symbol
WHERE m.asset_class IS NULL OR m.asset_class = ''
ORDER BY m.id
"""
_UPDATE_LISTED = """
UPDATE market_data m
SET asset_class = v.asset_class, updated_at = now()
FROM (VALUES {listed}) v (id, asset_class)
WHERE m.id = v.id
"""
_DAMAGED = "SELECT id, symbol FROM market_data WHERE asset_class IS NULL OR asset_class = ''"
_REFERENCE = "SELECT ticker, asset_class FROM symbols"
_FIXES = "CREATE TEMPORARY TABLE fixes (id bigint, asset_class text)"
_UPDATE_FROM_FIXES = """
UPDATE market_data m
SET asset_class = f.asset_class, updated_at = now()
FROM fixes f
WHERE m.id = f.id
"""
# Ranges of the key, so that no batch reads what earlier ones have done.
_PROCEDURE = """
CREATE PROCEDURE correct_in_batches(batch_size integer, INOUT corrected bigint)
LANGUAGE plpgsql AS $$
DECLARE
    after_id bigint := 0;
    up_to_id bigint;
    written bigint;
BEGIN
    corrected := 0;
    LOOP
        SELECT max(id) INTO up_to_id
        FROM (SELECT id FROM market_data
              WHERE id > after_id AND (asset_class IS NULL OR asset_class = '')
              ORDER BY id LIMIT batch_size) batch;
        EXIT WHEN up_to_id IS NULL;
        UPDATE market_data m
        SET asset_class = s.asset_class, updated_at = now()
        FROM symbols s
        WHERE s.ticker = m.symbol AND m.id > after_id AND m.id <= up_to_id
          AND (m.asset_class IS NULL OR m.asset_class = '');
        GET DIAGNOSTICS written = ROW_COUNT;
        corrected := corrected + written;
        COMMIT;
        after_id := up_to_id;
    END LOOP;
END
$$
"""


def replaced_system(dsn: str) -> Written:
    """The replaced system's algorithm without the pauses between its batches.

    A copy of the whole table, the ids of all correctable rows with their classes to the client,
    and one transaction with a VALUES list for each thousand of them. The statement is prepared,
    and written as the server reads it: psycopg looking for placeholders takes a third of the time.
    """
    with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        connection.execute(_COPY)
        wanted = connection.execute(_CORRECTABLE_IDS).fetchall()
        for start in range(0, len(wanted), BATCH):
            part = wanted[start : start + BATCH]
            places = range(1, 2 * len(part), 2)
            listed = ", ".join(f"(${place}::bigint, ${place + 1}::text)" for place in places)
            connection.execute(
                sql.SQL(_UPDATE_LISTED).format(listed=sql.SQL(listed)),
                [value for row in part for value in row],
            )
    return Written(len(wanted))


def pandas_map(dsn: str) -> Written:
    """Read the damaged rows and the reference with pandas, map, write back by a temporary table.

    `to_sql` and one UPDATE join: the usual way, many times faster than an UPDATE for each row.
    No backup; one transaction holds all rows to the end.
    """
    connect_to = sqlalchemy.engine.make_url(dsn).set(drivername="postgresql+psycopg2")
    database = sqlalchemy.create_engine(connect_to)
    try:
        with database.begin() as connection:
            rows = pd.read_sql(sqlalchemy.text(_DAMAGED), connection)
            reference = pd.read_sql(sqlalchemy.text(_REFERENCE), connection)
            classes = reference.set_index("ticker")["asset_class"]
            rows["asset_class"] = rows["symbol"].map(classes)
            fixes = rows.dropna(subset=["asset_class"])[["id", "asset_class"]]
            connection.execute(sqlalchemy.text(_FIXES))
            fixes.to_sql("fixes", connection, if_exists="append", index=False)
            updated = connection.execute(sqlalchemy.text(_UPDATE_FROM_FIXES))
            return Written(updated.rowcount)
    finally:
        database.dispose()


def plpgsql_loop(dsn: str) -> Written:
    """A PL/pgSQL procedure with a COMMIT after every thousand damaged rows, by ranges of the key.

    No backup, no resume but by starting again.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_PROCEDURE)
        row = connection.execute("CALL correct_in_batches(%s, 0)", (BATCH,)).fetchall()[0]
        return Written(int(row[0]))


Way = Callable[[str], Written]
# The most that our time may be of theirs.
MOST: dict[str, tuple[Way, float]] = {
    "the replaced system without its pauses": (replaced_system, 0.2),
    "pandas: read, map, write": (pandas_map, 1.0),
    "PL/pgSQL loop with COMMIT": (plpgsql_loop, 1.0),
}


def measure(bench: Bench) -> Findings:
    """Our default options, with backup and audit, against each way."""
    rows = bench.size(ROWS)
    ours = engine("engine, default options", CorrectionOptions())
    ways = [Contestant(name, way) for name, (way, _) in MOST.items()]
    runs = compete(bench, rows, [ours, *ways], bench.rounds)
    return Findings(
        [
            limited_ratio(
                f"baseline, {rows:,} rows: engine against {name}",
                median_time(runs, ours.name),
                median_time(runs, name),
                most,
                seconds,
            )
            for name, (_, most) in MOST.items()
        ]
    )
