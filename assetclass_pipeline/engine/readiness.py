"""Whether a correction may begin: the preflight of an operation, kept with it, and its reference.

Belongs here: when to look, refusing, what the operation's row keeps. Does not: what is looked at
(preflight.py), and the correction's phases (correction.py).
"""

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import scan, transaction
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.conditions import blanks_of
from assetclass_pipeline.engine.estimation import estimate_seconds, recent_rate
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.plan import PlanScan, PlanState
from assetclass_pipeline.engine.preflight import check_market, preflight
from assetclass_pipeline.errors import PreflightRefusedError
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.pacing import PROFILES
from assetclass_pipeline.model.preflight import Preflight, estimate_error_percent
from assetclass_pipeline.model.quality import SecondsRange
from assetclass_pipeline.settings import Settings

# Of fewer rows, a rehearsal would take too large a share: its dead row versions stay, and what it
# costs to find some to rehearse with.
LEAST_ROWS_TO_REHEARSE = 50_000


def refuse_what_would_do_harm(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    options: CorrectionOptions,
) -> None:
    """What the catalogue alone forbids, before anything is written. Raises PreflightRefusedError.

    A dry run changes nothing and is refused nothing.
    """
    if not options.dry_run:
        _refuse(check_market(connection, tables, settings, options, new_classes=None, records=None))


def prepare(plan: PlanScan, state: PlanState, *, scan_seconds: float) -> None:
    """Look at the tables with the plan at hand, and keep what was found with the operation.

    How long the whole operation is expected to take is kept too, where that is known;
    `scan_seconds` is what one scan of the market table took. Raises PreflightRefusedError;
    nothing of the market table was changed then.
    """
    found = plan.holder.attempt(_look, plan, state, scan_seconds)
    estimate = found.estimated_seconds
    values = {
        "preflight": Jsonb(found.model_dump(mode="json", by_alias=True)),
        "estimate": Jsonb(estimate.model_dump(mode="json", by_alias=True)) if estimate else None,
    }
    plan.holder.attempt(plan.holder.update, "set_preflight", values)
    if not plan.options.dry_run:
        _refuse(found)


def _look(plan: PlanScan, state: PlanState, scan_seconds: float) -> Preflight:
    connection, settings = plan.connection, plan.holder.settings
    with scan(connection, settings) as cursor:
        rate = recent_rate(cursor)
        cursor.execute(query("operation", "new_classes", backup=state.identifier))
        classes = {str(name): int(records) for name, records in cursor.fetchall()}
    records, tables, options = state.planned, plan.tables, plan.options
    found = check_market(
        connection, tables, settings, options, new_classes=classes, records=records
    )
    if options.dry_run or not _is_worth_rehearsing(found):
        return found.model_copy(update={"estimated_seconds": estimate_seconds(records, rate)})
    return preflight(
        connection,
        tables,
        settings,
        options,
        new_classes=classes,
        records=records,
        scope=plan.scope,
        history_rate=rate,
        scan_seconds=scan_seconds,
        pause_share=PROFILES[options.pace].pause_share,
    )


def _is_worth_rehearsing(found: Preflight) -> bool:
    """Whether there are many rows to write, or triggers that may write something else."""
    return (found.rows_to_change or 0) >= LEAST_ROWS_TO_REHEARSE or any(
        trigger.fires for trigger in found.triggers
    )


def rehearsed_row(holder: Holder) -> float | None:
    """Seconds that a row cost in the operation's rehearsal; None where there was none."""
    key = {"correction_id": holder.correction_id}
    with transaction(holder.connection, holder.settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "rehearsed_row"), key).fetchone()
    return None if row is None else row[0]


def estimate_error(holder: Holder) -> float | None:
    """How far off the estimate was, in percent; None where none was made.

    What counts is the work of all tries and processes, from the first claim until now.
    """
    key = {"correction_id": holder.correction_id}
    with transaction(holder.connection, holder.settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "estimate_and_work"), key).fetchone()
    if row is None or row[0] is None:
        return None
    estimate = SecondsRange.model_validate(row[0])
    worked = max(0.0, row[1] - holder.journal.seconds_unwritten)
    return estimate_error_percent(estimate.low, estimate.high, worked)


def _refuse(found: Preflight) -> None:
    if found.refusals:
        raise PreflightRefusedError(" ".join(finding.message for finding in found.refusals))


def remember_reference(holder: Holder, tables: MarketTables) -> None:
    """Keep the fingerprint of the mapping that the plan is made from."""
    now = holder.attempt(lambda: fingerprint(holder.connection, holder.settings, tables))
    holder.attempt(holder.update, "set_reference", {"reference_hash": now})


def tell_changed_reference(holder: Holder, tables: MarketTables) -> None:
    """Put it on record when the reference is another one than the plan was made from.

    Rows of the tickers concerned are left by their batches, each with its reason.
    """
    key = {"correction_id": holder.correction_id}
    with transaction(holder.connection, holder.settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "reference_hash"), key).fetchone()
    now = fingerprint(holder.connection, holder.settings, tables)
    if row is not None and row[0] and row[0] != now:
        holder.journal.tell("reference_changed", planned_from=row[0], now=now)


def fingerprint(connection: Connection[TupleRow], settings: Settings, tables: MarketTables) -> str:
    """SHA-256 of what tickers and classes `symbols` maps now, in hexadecimal digits."""
    mapping = query("reference", "mapping", symbols=tables.symbols)
    with scan(connection, settings) as cursor:
        row = cursor.execute(
            query("reference", "fingerprint", mapping=mapping), {"blanks": blanks_of(connection)}
        ).fetchone()
    return str(row[0]) if row else ""
