"""`assetclass alerts test`: a real message on every channel, or on one.

Belongs here: parsing, the record of who did it, printing what each channel answered. Does not:
sending (monitoring/delivery.py), and the other commands about alerts (alerts.py).
"""

from typing import Annotated

import psycopg
import typer

from assetclass_pipeline.cli.exit_status import FAILED
from assetclass_pipeline.cli.presentation import (
    aside,
    document,
    for_people,
    print_document,
    table,
)
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.database.connections import connect, open_database, transaction
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.engine.audit import record
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.audit import Actor, AuditEntry
from assetclass_pipeline.monitoring.delivery import ChannelTest, send_test
from assetclass_pipeline.settings import Settings, load_settings

_ACTION = "test_channels"


def send_test_message(
    *,
    channel: Annotated[
        str | None,
        typer.Option(help="Only this one of the settings.", metavar="NAME", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
    ] = False,
) -> None:
    """Send a real test message; exit status 1 when a channel did not take it.

    Works without the database too; then it does not stand in the audit log.
    """
    settings = load_settings()
    tests = send_test(settings, channel, by=this_user())
    unrecorded = _record(settings, tests)
    if as_json:
        print_document(
            {"tests": [document(one) for one in tests], "isRecorded": unrecorded is None}
        )
    else:
        _show(tests)
        if unrecorded is not None:
            aside().print(f"Not in the audit log: {unrecorded}", soft_wrap=True)
    if not all(one.delivered for one in tests):
        raise typer.Exit(FAILED)


def _record(settings: Settings, tests: list[ChannelTest]) -> str | None:
    """Write down who sent what; why it could not be, None when it was."""
    all_delivered = all(one.delivered for one in tests)
    entry = AuditEntry(
        Actor.of_requester(this_user()),
        _ACTION,
        "delivered" if all_delivered else "failed",
        {"channels": {one.channel: one.error or "delivered" for one in tests}},
    )
    try:
        with (
            open_database(settings) as dsn,
            connect(dsn, settings, purpose="alerts test") as connection,
        ):
            require_schema(connection)
            with transaction(connection, settings) as cursor:
                record(cursor, entry)
    except AssetClassError as error:
        return str(error)
    except psycopg.Error as error:
        return str(error).partition("\n")[0]
    return None


def _show(tests: list[ChannelTest]) -> None:
    made = table("channel", "level", "hears of", "answer", right=("level",))
    for one in tests:
        heard = ", ".join(one.severities)
        made.add_row(one.channel, str(one.level), heard, one.error or "delivered")
    for_people().print(made)
