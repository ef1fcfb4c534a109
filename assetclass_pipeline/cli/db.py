"""`assetclass db upgrade | status | indexes | downgrade`.

Belongs here: parsing, calling the database room, printing what it answers. Does not: SQL.
"""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from assetclass_pipeline.cli.presentation import (
    aside,
    duration,
    for_people,
    print_document,
    table,
)
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import open_database
from assetclass_pipeline.database.indexes import IndexOutcome, IndexResult, ensure_indexes
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.settings import load_settings

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]
_GOOD = {IndexOutcome.PRESENT, IndexOutcome.CREATED, IndexOutcome.REPAIRED, IndexOutcome.COMPLETED}

app = typer.Typer()


@app.callback(invoke_without_command=True)
def _db(context: typer.Context) -> None:
    """The pipeline's own schema, and indexes that it wants on the market tables."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def upgrade(as_json: AsJson = False) -> None:
    """Bring the schema `assetclass` to the newest revision; running it again changes nothing."""
    settings = load_settings()
    with open_database(settings) as dsn:
        _show_status(schema.upgrade(dsn, settings, by=this_user()), as_json=as_json)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show at which revision the schema `assetclass` is."""
    settings = load_settings()
    with open_database(settings) as dsn:
        _show_status(schema.status(dsn, settings), as_json=as_json)


@app.command()
def indexes(as_json: AsJson = False) -> None:
    """Build the wanted indexes on the market tables while they are in use; repair INVALID ones."""
    settings = load_settings()
    progress = aside()
    with open_database(settings) as dsn:
        results = ensure_indexes(dsn, settings, progress.print)
    if as_json:
        print_document({"indexes": [asdict(result) for result in results]})
    else:
        _show_indexes(results)


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help='A revision, or "base": drop all our tables.')],
    yes: Annotated[bool, typer.Option("--yes", help="Yes, what is recorded there may go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take the schema `assetclass` back; the records of the tables that go are lost."""
    if not yes:
        raise InvalidOptionsError(
            "A downgrade drops tables with the operations and measurements recorded in them. Say "
            "--yes when that is meant; backup tables stay either way."
        )
    settings = load_settings()
    with open_database(settings) as dsn:
        found = schema.downgrade(dsn, settings, revision, by=this_user())
        _show_status(found, as_json=as_json)


def _show_status(found: schema.SchemaStatus, *, as_json: bool) -> None:
    if as_json:
        print_document(
            {
                "schema": schema.SCHEMA,
                "current": found.current,
                "head": found.head,
                "pending": list(found.pending),
                "atHead": found.at_head,
            }
        )
        return
    shown = table("schema", "revision", "newest", "pending", "")
    verdict = Text("ready", "green") if found.at_head else Text("not ready", "bold red")
    pending = ", ".join(found.pending) or "-"
    shown.add_row(schema.SCHEMA, found.current or "-", found.head, pending, verdict)
    console = for_people()
    console.print(shown)
    if not found.at_head:
        console.print("\n`assetclass db upgrade` does what is pending.")


def _show_indexes(results: list[IndexResult]) -> None:
    shown = table("index", "table", "", "took")
    for result in results:
        colour = "green" if result.outcome in _GOOD else "yellow"
        outcome = Text(result.outcome, colour)
        shown.add_row(Text(result.name), Text(result.table), outcome, duration(result.seconds))
    console = for_people()
    console.print(shown)
    for result in results:
        if result.outcome not in _GOOD:
            console.print(f"\n{result.name}: {result.message}.")
