"""The plan of an operation by month: how many rows were planned, how many of them skipped.

Belongs here: reading a finished plan. Does not: making one.
"""

from dataclasses import dataclass

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import scan
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.plan import PlanState
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.settings import Settings


@dataclass(frozen=True)
class PlannedMonth:
    """Rows of one month in a plan; those that were not skipped are or will be corrected."""

    planned: int = 0
    skipped: int = 0


def planned_months(
    connection: Connection[TupleRow], tables: MarketTables, settings: Settings, correction_id: str
) -> dict[str, PlannedMonth] | None:
    """Partition key to its planned rows; None when the operation keeps no plan any more.

    The sum of `planned` is the number of rows that really stand in the plan's table.
    """
    calendar = Calendar.until_now(settings.first_month)
    key = {"correction_id": as_uuid(correction_id)}
    months: dict[str, PlannedMonth] = {}
    with scan(connection, settings) as cursor:
        row = cursor.execute(query("operation", "plan_of"), key).fetchone()
        if row is None or row[0] is None:
            return None
        state = PlanState.model_validate(row[0])
        names = {"schema": state.schema_name, "table": state.table_name}
        found = cursor.execute(query("plan", "table_exists"), names).fetchone()
        if found is None or not found[0]:
            return None
        cursor.execute(
            query(
                "planned_months",
                "by_month",
                backup=state.identifier,
                timestamp_type=sql.SQL(tables.timestamp_type),
            ),
            {**key, "months": [start.isoformat() for start in calendar.starts]},
        )
        for place, planned, skipped in cursor.fetchall():
            month = calendar.key_at(place)
            before = months.get(month, PlannedMonth())
            months[month] = PlannedMonth(before.planned + planned, before.skipped + skipped)
    return months
