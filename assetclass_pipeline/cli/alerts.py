"""`assetclass alerts list | show | ack | snooze | test | maintenance start|list|end`.

Belongs here: parsing, asking the alert store, printing what it answers. Does not: how that looks to
people (alert_presentation.py), and tests of channels (alert_test.py).
"""

from datetime import UTC, datetime
from typing import Annotated

import typer
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.cli import alert_presentation as shown
from assetclass_pipeline.cli.alert_test import send_test_message
from assetclass_pipeline.cli.pipeline import open_pipeline
from assetclass_pipeline.cli.presentation import document, for_people, print_document, print_model
from assetclass_pipeline.cli.records import open_records
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.moments import parse_moment, parse_span
from assetclass_pipeline.monitoring import alert_store
from assetclass_pipeline.settings import Settings

AlertId = Annotated[int, typer.Argument(help="The alert's number.", metavar="ID")]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]
For = Annotated[
    str | None,
    typer.Option("--for", help="How long, like 45m, 2h or 1d.", metavar="SPAN", show_default=False),
]
Until = Annotated[
    str | None,
    typer.Option(
        help="Until when, UTC unless it says otherwise.", metavar="TIME", show_default=False
    ),
]

app = typer.Typer()
maintenance = typer.Typer()


@app.callback(invoke_without_command=True)
def _alerts(context: typer.Context) -> None:
    """What is wrong now, who was told of it, and who has taken it on."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_(
    *,
    every: Annotated[bool, typer.Option("--all", help="Those that are over too.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many alerts at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show unresolved alerts, the most severe first."""
    with open_pipeline() as pipeline:
        found, windows = pipeline.alerts(most=limit, include_resolved=every)
    if as_json:
        print_document({"alerts": [document(alert) for alert in found]})
    else:
        shown.show_alerts(for_people(), found, windows, now=datetime.now(UTC))


@app.command()
def show(alert_id: AlertId, as_json: AsJson = False) -> None:
    """Show one alert: how bad, since when, who was told, what to do."""
    with open_records("alerts show") as (connection, settings, _):
        history = alert_store.alert_history(connection, settings, alert_id)
    if as_json:
        print_model(history)
    else:
        shown.show_history(for_people(), history, settings, now=datetime.now(UTC))


@app.command()
def ack(
    alert_id: AlertId,
    *,
    note: Annotated[
        str | None, typer.Option(help="What you are about to do.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take an alert on: nobody is reminded of it any more, until it comes back."""
    said = (note or "").strip() or None
    with open_pipeline() as pipeline:
        taken = pipeline.acknowledge(alert_id, note=said)
    if as_json:
        print_model(taken)
    else:
        for_people().print(
            f"Alert {alert_id} is yours, {taken.acknowledged_by}: nobody is reminded of it, until "
            "it comes back.",
            soft_wrap=True,
        )


@app.command()
def snooze(
    alert_id: AlertId, *, lasts: For = None, until: Until = None, as_json: AsJson = False
) -> None:
    """Let nobody be told of an alert for a while; it stays open."""
    ends_at = _end(lasts, until)
    with open_records("alerts snooze") as (connection, settings, _):
        asleep = alert_store.snooze(connection, settings, alert_id, until=ends_at, by=this_user())
    if as_json:
        print_model(asleep)
    else:
        for_people().print(
            f"Alert {alert_id}: nobody is told of it before {shown.moment(asleep.snoozed_until)}.",
            soft_wrap=True,
        )


@maintenance.callback(invoke_without_command=True)
def _maintenance(context: typer.Context) -> None:
    """Let nobody be told of alerts while the system is worked on."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@maintenance.command()
def start(
    *,
    reason: Annotated[str, typer.Option(help="Why, for those who wonder at the silence.")],
    lasts: For = None,
    until: Until = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            help="Only of this type, like LOW_DATA_QUALITY; several times for several.",
            metavar="TYPE",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a maintenance window now.

    Alerts open in it all the same. Whoever should have been told is told when it ends, of those
    that are not over by then.
    """
    ends_at = _end(lasts, until)
    chosen = [_type(said) for said in types or []] or None
    with open_records("alerts maintenance") as (connection, settings, _):
        window = alert_store.open_window(
            connection,
            settings,
            ends_at=ends_at,
            reason=reason,
            by=this_user(),
            alert_types=chosen,
        )
    if as_json:
        print_model(window)
    else:
        for_people().print(
            f"Maintenance window {window.id}: nobody is told of {shown.types(window)} before "
            f"{shown.moment(window.ends_at)}. `assetclass alerts maintenance end {window.id}` ends "
            "it earlier.",
            soft_wrap=True,
        )


@maintenance.command("list")
def list_windows(
    *,
    every: Annotated[bool, typer.Option("--all", help="Those that are over too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show maintenance windows that are not over."""
    with open_records("alerts maintenance") as (connection, settings, _):
        found = alert_store.windows(connection, settings, include_ended=every)
    if as_json:
        print_document({"windows": [document(window) for window in found]})
    else:
        shown.show_windows(for_people(), found, now=datetime.now(UTC))


@maintenance.command()
def end(
    window_id: Annotated[
        int | None,
        typer.Argument(help="The window; without it, the only one there is.", metavar="[ID]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """End a maintenance window now; what waited for its end is told."""
    with open_records("alerts maintenance") as (connection, settings, _):
        chosen = _only_window(connection, settings) if window_id is None else window_id
        ended = alert_store.end_window(connection, settings, chosen, by=this_user())
    if as_json:
        print_model(ended)
    else:
        for_people().print(
            f"Maintenance window {ended.id} is over: {shown.types(ended)} is told again.",
            soft_wrap=True,
        )


def _only_window(connection: Connection[TupleRow], settings: Settings) -> int:
    found = alert_store.windows(connection, settings)
    if len(found) != 1:
        raise InvalidOptionsError(
            f"{len(found) or 'No'} maintenance windows are not over: name the one to end; "
            "`assetclass alerts maintenance list` shows them."
        )
    return found[0].id


def _end(lasts: str | None, until: str | None) -> datetime:
    """When it is over, by either flag."""
    if lasts is not None and until is None:
        return datetime.now(UTC) + parse_span("--for", lasts)
    if until is not None and lasts is None:
        return parse_moment("--until", until)
    raise InvalidOptionsError("Say either how long, like --for 2h, or --until TIME.")


def _type(said: str) -> AlertType:
    name = said.strip().upper().replace("-", "_")
    if name not in AlertType.__members__:
        known = ", ".join(AlertType)
        raise InvalidOptionsError(f"--type {said[:60]}: there are {known}.")
    return AlertType(name)


app.command("test")(send_test_message)
app.add_typer(maintenance, name="maintenance")
