"""The plan of an operation by month: how many rows, and what became of them.

Belongs here: reading a finished plan. Does not: making one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import scan
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.plan import PlanState
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.settings import Settings


@dataclass(frozen=True)
class PlannedMonth:
    """Rows of one month in a plan; those that were not skipped are or will be corrected."""

    planned: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class RolledBackMonth:
    """Rows of one month that have their old value back, and those that a rollback left alone."""

    restored: int = 0
    conflicting: int = 0


def planned_months(
    connection: Connection[TupleRow], tables: MarketTables, settings: Settings, correction_id: str
) -> dict[str, PlannedMonth] | None:
    """Partition key to its planned rows; None when the operation keeps no plan any more.

    The sum of `planned` is the number of rows that really stand in the plan's table.
    """
    key = as_uuid(correction_id)
    counted = _by_month(
        connection,
        tables,
        settings,
        of_plan=key,
        statement="by_month",
        values={"correction_id": key},
    )
    if counted is None:
        return None
    return {month: PlannedMonth(*numbers) for month, numbers in counted.items()}


def rolled_back_months(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    rollback: Operation,
) -> dict[str, RolledBackMonth]:
    """Partition key to what a rollback did there; nothing once the correction's backup is gone."""
    key, undone = as_uuid(rollback.correction_id), as_uuid(str(rollback.rollback_of))
    values = {"correction_id": key, "undone": undone}
    counted = _by_month(
        connection,
        tables,
        settings,
        of_plan=undone,
        statement="rolled_back_by_month",
        values=values,
    )
    return {month: RolledBackMonth(*numbers) for month, numbers in (counted or {}).items()}


def _by_month(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    *,
    of_plan: UUID,
    statement: str,
    values: Mapping[str, object],
) -> dict[str, tuple[int, int]] | None:
    """Two numbers of each month, from the plan of an operation; None when it keeps none."""
    calendar = Calendar.until_now(settings.first_month)
    months: dict[str, tuple[int, int]] = {}
    with scan(connection, settings) as cursor:
        state = _kept_plan(cursor, of_plan)
        if state is None:
            return None
        cursor.execute(
            query(
                "planned_months",
                statement,
                backup=state.identifier,
                timestamp_type=sql.SQL(tables.timestamp_type),
            ),
            {**values, "months": [start.isoformat() for start in calendar.starts]},
        )
        for place, first, second in cursor.fetchall():
            month = calendar.key_at(place)
            before = months.get(month, (0, 0))
            months[month] = (before[0] + first, before[1] + second)
    return months


def _kept_plan(cursor: Cursor[TupleRow], correction_id: UUID) -> PlanState | None:
    key = {"correction_id": correction_id}
    row = cursor.execute(query("operation", "plan_of"), key).fetchone()
    if row is None or row[0] is None:
        return None
    state = PlanState.model_validate(row[0])
    names = {"schema": state.schema_name, "table": state.table_name}
    found = cursor.execute(query("plan", "table_exists"), names).fetchone()
    return state if found is not None and found[0] else None
