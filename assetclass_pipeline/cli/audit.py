"""`assetclass audit log | verify | export | row`.

Belongs here: parsing, calling the engine, where an export goes. Does not: how entries look
(audit_presentation).
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TextIO

import typer

from assetclass_pipeline.cli import audit_presentation
from assetclass_pipeline.cli.pipeline import open_pipeline
from assetclass_pipeline.cli.presentation import (
    aside,
    document,
    for_people,
    print_document,
    print_model,
)
from assetclass_pipeline.cli.records import open_records
from assetclass_pipeline.engine import audit
from assetclass_pipeline.engine.audit_export import ExportFormat, write_entries
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.audit import Head
from assetclass_pipeline.model.moments import parse_moment

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]
Since = Annotated[
    str | None,
    typer.Option(
        help="From this time on, ISO 8601; UTC unless it says otherwise.",
        metavar="TIME",
        show_default=False,
    ),
]
Until = Annotated[
    str | None, typer.Option(help="Before this time.", metavar="TIME", show_default=False)
]
ActorName = Annotated[
    str | None, typer.Option("--actor", help="By whom.", metavar="NAME", show_default=False)
]
ActionName = Annotated[
    str | None,
    typer.Option(
        "--action", help="Which action, like claim_operation.", metavar="NAME", show_default=False
    ),
]
OperationId = Annotated[
    str | None,
    typer.Option("--operation", help="About this operation.", metavar="ID", show_default=False),
]
_STDOUT = "-"

app = typer.Typer()


@app.callback(invoke_without_command=True)
def _audit(context: typer.Context) -> None:
    """Who did what, whether the log is whole, and how a row came by its value."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def log(
    *,
    since: Since = None,
    until: Until = None,
    actor: ActorName = None,
    action: ActionName = None,
    operation: OperationId = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many entries at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the newest entries of the audit log."""
    chosen = _filter(since, until, actor, action, operation)
    with open_records("audit log") as (connection, settings, _):
        found = audit.newest_entries(connection, settings, chosen, most=limit)
    if as_json:
        print_document({"entries": [document(entry) for entry in found]})
    else:
        audit_presentation.show_entries(for_people(), found)


@app.command()
def verify(
    *,
    head: Annotated[
        str | None,
        typer.Option(
            help="A head noted earlier: shows also whether the end was cut off since.",
            metavar="NUMBER:HASH",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the hash chain; exit status 1 when an entry was changed, removed or added.

    Note the head that it prints where the database's owner cannot write: only against such a note
    is it seen that the end of the log was cut off, or all of it written anew.
    """
    noted = None if head is None else Head.parse(head)
    with open_records("audit verify") as (connection, settings, _):
        found = audit.verify(connection, settings, noted)
    if as_json:
        shown = str(found.head) if found.head else None
        print_document({"intact": True, "entries": found.entries, "head": shown})
    else:
        audit_presentation.show_verification(for_people(), found, noted)


@app.command()
def export(
    *,
    form: Annotated[ExportFormat, typer.Option("--format", help="csv or json.")],
    out: Annotated[
        str, typer.Option(help="A new file; - is standard output.", metavar="FILE")
    ] = _STDOUT,
    since: Since = None,
    until: Until = None,
    actor: ActorName = None,
    action: ActionName = None,
    operation: OperationId = None,
    as_json: AsJson = False,
) -> None:
    """Write the entries, all or chosen ones, as CSV or JSON, the oldest first.

    Whatever the length of the log, only some entries are in memory at a time.
    """
    if as_json and out == _STDOUT:
        raise InvalidOptionsError(
            "--json tells about the export on standard output: name a file with --out FILE."
        )
    chosen = _filter(since, until, actor, action, operation)
    with (
        open_records("audit export") as (connection, settings, _),
        _opened(out) as stream,
        audit.all_entries(connection, settings, chosen) as found,
    ):
        number = write_entries(found, form, stream)
    if as_json:
        print_document({"entries": number, "format": form.value, "file": out})
    elif out != _STDOUT:
        aside().print(f"{number:,} entries written to {out}", soft_wrap=True)


@contextmanager
def _opened(out: str) -> Iterator[TextIO]:
    """Where to write; a file that could not be written to its end is removed."""
    if out == _STDOUT:
        # UTF-8 whatever the terminal: characters that it cannot show must not be lost.
        stream = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
        try:
            yield stream
        finally:
            with suppress(BrokenPipeError):
                stream.detach()
        return
    path = Path(out)
    try:
        # Never over an older export: what was handed to an auditor stays as it was.
        file = path.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise InvalidOptionsError(
            f"--out {out}: {error.strerror or error}. Name a new file in a folder that exists."
        ) from None
    try:
        with file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _filter(
    since: str | None,
    until: str | None,
    actor: str | None,
    action: str | None,
    operation: str | None,
) -> audit.AuditFilter:
    return audit.AuditFilter(
        parse_moment("--since", since), parse_moment("--until", until), actor, action, operation
    )


@app.command()
def row(
    key: Annotated[str, typer.Argument(help="The row's id.", metavar="KEY")],
    *,
    symbol: Annotated[
        str | None,
        typer.Option(help="Where several rows have this id: of this symbol.", show_default=False),
    ] = None,
    timestamp: Annotated[
        str | None, typer.Option(help="And of this time.", metavar="TIME", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed a row, when, from what to what, why, and whether it can be put back."""
    with open_pipeline() as pipeline:
        found = pipeline.row_history(key, symbol=symbol, timestamp=timestamp)
    if as_json:
        print_model(found)
    else:
        audit_presentation.show_history(for_people(), found)
