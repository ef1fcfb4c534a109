"""`alert_notifications`: messages about alerts go out, and are told again when nobody takes them.

Belongs here: when. Does not: what a message says, where it goes and how (monitoring/).
"""

from typing import Final

import dagster as dg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.sensors.ticks import Answer, ask
from assetclass_pipeline.monitoring.delivery import deliver_due
from assetclass_pipeline.monitoring.reminders import remind

ALERT_NOTIFICATIONS: Final = "alert_notifications"
_INTERVAL: Final = 5
_MOST: Final = 100
# No message is begun later; one that is on its way has its own time. A tick may take 60 s.
_SECONDS: Final = 5.0


@dg.sensor(
    name=ALERT_NOTIFICATIONS,
    minimum_interval_seconds=_INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Tells people of alerts on the channels of the settings, tries again where a channel does "
        "not answer, and goes one level higher where nobody takes an alert."
    ),
)
def alert_notifications(database: dg.ResourceParam[MarketDatabase]) -> Answer:
    """Remind, then deliver what is due, for some seconds at most; it never starts a run."""

    def tell(connection: Connection[TupleRow]) -> dg.SkipReason:
        with transaction(connection, database.settings) as cursor:
            reminded = remind(cursor, database.settings)
        report = deliver_due(connection, database.settings, most=_MOST, seconds=_SECONDS)
        if not reminded and report.nothing_happened:
            return dg.SkipReason("Nothing to tell.")
        return dg.SkipReason(f"Messages: {report}. Alerts that nobody took: {reminded}.")

    return ask(database, ALERT_NOTIFICATIONS, tell)
