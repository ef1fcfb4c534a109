"""`assetclass`: the entry point, which command lives where, and how every command ends.

Belongs here: the list of commands, the one place where an error becomes a message and an exit
status. Does not: any command. A command's module is imported only when that command is called, so
that `--help` does not wait for Dagster.
"""

import importlib
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from assetclass_pipeline import __version__
from assetclass_pipeline.cli.exit_status import FAILED, INTERRUPTED, USAGE
from assetclass_pipeline.cli.presentation import print_document, show_error
from assetclass_pipeline.cli.remote import (
    API_FLAG,
    TOKEN_FILE_FLAG,
    Flags,
    choose,
    refuse_what_has_no_call,
    to_the_front,
)
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.refused_values import own_words

if TYPE_CHECKING:
    from typer._click import Command, Context

_HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
_DATABASE_ERROR = "DATABASE_ERROR"
_UNEXPECTED = "INTERNAL_ERROR"
_USAGE_ERROR = "INVALID_OPTIONS"


class _Place(NamedTuple):
    """Where a command is, and its sentence in the list of commands."""

    module: str
    attribute: str
    sentence: str


_ROOM = "assetclass_pipeline.cli"
COMMANDS = {
    "demo": _Place(f"{_ROOM}.demo", "demo", "Correct real market data and tell the story."),
    "up": _Place(
        f"{_ROOM}.up",
        "up",
        "Run the database, the Dagster web page, the daemon and the API until Ctrl-C.",
    ),
    "db": _Place(
        f"{_ROOM}.db",
        "app",
        "The pipeline's own schema, and indexes that it wants on the market tables.",
    ),
    "analyze": _Place(f"{_ROOM}.correction", "analyze", "Measure the damage; change nothing."),
    "preview": _Place(
        f"{_ROOM}.correction", "preview", "Say what a correction would do; change nothing."
    ),
    "execute": _Place(
        f"{_ROOM}.correction", "execute", "Correct the rows through Dagster's correction_job."
    ),
    "rollback": _Place(
        f"{_ROOM}.rollback", "rollback", "Undo a correction through Dagster's rollback_job."
    ),
    "validate": _Place(
        f"{_ROOM}.correction",
        "validate",
        "Check the thresholds; exit status 5 when one is not met.",
    ),
    "status": _Place(
        f"{_ROOM}.correction", "status", "Show the active operation and the recent ones, or one."
    ),
    "pause": _Place(
        f"{_ROOM}.control", "pause", "Let the running operation stay between two batches."
    ),
    "resume": _Place(
        f"{_ROOM}.control", "resume", "Let a paused operation go on; run one that was cut off."
    ),
    "cancel": _Place(
        f"{_ROOM}.control", "cancel", "Stop the active operation; what is committed stays."
    ),
    "tune": _Place(f"{_ROOM}.control", "tune", "Make the running operation go faster or slower."),
    "metrics": _Place(
        f"{_ROOM}.metrics",
        "metrics",
        "Show how operations went, how good the data are, which limits are not met.",
    ),
    "health": _Place(
        f"{_ROOM}.health",
        "health",
        "Say whether all is well; exit status 1 when it is not.",
    ),
    "doctor": _Place(
        f"{_ROOM}.health",
        "doctor",
        "Examine everything, and say how to mend what is wrong; exit status 1 when something is.",
    ),
    "backups": _Place(
        f"{_ROOM}.backups", "app", "List, prove, hold and clean up what can undo a correction."
    ),
    "alerts": _Place(
        f"{_ROOM}.alerts",
        "app",
        "What is wrong now, who was told of it, and who has taken it on.",
    ),
    "audit": _Place(
        f"{_ROOM}.audit",
        "app",
        "Who did what, whether the log is whole, and how a row came by its value.",
    ),
    "tokens": _Place(f"{_ROOM}.tokens", "app", "Who may call the REST API, and with which role."),
    "report": _Place(
        f"{_ROOM}.report",
        "app",
        "Write a report as a page: performance, audit, capacity or quality.",
    ),
}
"""Every command, in the order of the help page."""


class _LazyCommands(TyperGroup):
    """Knows each command's name and sentence; imports a command only to run it."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - the framework's own
        super().__init__(**settings)
        self.commands = {name: _sign(name, place.sentence) for name, place in COMMANDS.items()}

    def resolve_command(
        self, ctx: "Context", args: list[str]
    ) -> "tuple[str | None, Command | None, list[str]]":
        name, sign, rest = super().resolve_command(ctx, args)
        choose(Flags(ctx.params.get("api"), ctx.params.get("token_file")))
        if name is not None:
            refuse_what_has_no_call(name, rest)
        return name, sign if name is None else _load(name), rest


def _sign(name: str, sentence: str) -> "Command":
    alone = typer.Typer(add_completion=False)
    alone.command(name, help=sentence)(lambda: None)
    return get_command(alone)


def _load(name: str) -> "Command":
    # A server that a command has started must not outlive it.
    from assetclass_pipeline.database.embedded import (  # noqa: PLC0415 - --help needs no driver
        exit_on_termination,
    )

    exit_on_termination()
    place = COMMANDS[name]
    found = getattr(importlib.import_module(place.module), place.attribute)
    if isinstance(found, typer.Typer):
        group = get_group(found)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, context_settings=_HELP_FLAGS)(found)
    return get_command(alone)


app = typer.Typer(
    cls=_LazyCommands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # Rich's boxes cut long flags off in a terminal of 80 columns.
    rich_markup_mode=None,
    context_settings=_HELP_FLAGS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"assetclass {__version__}")
        raise typer.Exit


@app.callback()
def _assetclass(
    context: typer.Context,
    debug: Annotated[  # noqa: ARG001 - read by main(), which also takes it behind a command
        bool, typer.Option("--debug", help="Show the whole traceback of an error.")
    ] = False,
    api: Annotated[  # noqa: ARG001 - read where the command is resolved; main() takes it anywhere
        str | None,
        typer.Option(
            API_FLAG,
            help="Talk to the pipeline behind this REST API, not to a database "
            "(ASSETCLASS_API_URL).",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[  # noqa: ARG001 - likewise
        str | None,
        typer.Option(
            TOKEN_FILE_FLAG,
            help="The token for it, in a file that only its owner may read "
            "(ASSETCLASS_API_TOKEN_FILE).",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Measure, correct and prove the asset_class values of a live market_data table.

    With --json a command prints one JSON document on standard output and nothing else there.

    Exit status: 0 fine, 1 failed, 2 usage, 3 another operation is active, 4 not found,
    5 validate found thresholds not met.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command that `sys.argv` names; ends the process with its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a question mark instead of failing.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit status. An error is rendered here and nowhere else."""
    debug = "--debug" in arguments
    as_json = "--json" in arguments
    try:
        status: Any = get_command(app).main(
            to_the_front([argument for argument in arguments if argument != "--debug"]),
            prog_name="assetclass",
            standalone_mode=False,
        )
    except AssetClassError as error:
        _explain(error.code, str(error), as_json, correction_id=_correction_id(error))
        _trace(debug)
        return error.exit_status
    except typer.TyperException as error:
        _explain(_USAGE_ERROR, _usage(error), as_json)
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: one line, not a traceback
        from_database = type(error).__module__.startswith("psycopg")
        code, describe = (_DATABASE_ERROR, _refused) if from_database else (_UNEXPECTED, _failed)
        _explain(code, describe(error, arguments, debug), as_json)
        _trace(debug)
        return FAILED
    return status if isinstance(status, int) else 0


def _explain(code: str, message: str, as_json: bool, *, correction_id: str | None = None) -> None:
    if as_json:
        document = {"success": False, "errorCode": code, "message": message}
        print_document(document | ({"correctionId": correction_id} if correction_id else {}))
    else:
        show_error(message)


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _correction_id(error: AssetClassError) -> str | None:
    return getattr(error, "correction_id", None)


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "assetclass"
    said = own_words(error.format_message())
    said += "" if said.endswith((".", "?")) else "."
    return f"{said} `{where} --help` lists what it takes."


def _refused(error: Exception, arguments: list[str], debug: bool) -> str:
    """What PostgreSQL said, without the statement that it quotes in further lines."""
    return (
        f"PostgreSQL gave up on `{_command(arguments)}`: {_first_line(error)}. Mend that, or try "
        f"again; what was committed stays.{'' if debug else ' --debug shows where it happened.'}"
    )


def _failed(error: Exception, arguments: list[str], debug: bool) -> str:
    hint = "" if debug else " Run it again with --debug to see where, and report it."
    kind = type(error).__name__
    return f"`{_command(arguments)}` failed unexpectedly: {kind}: {_first_line(error)}.{hint}"


def _command(arguments: list[str]) -> str:
    return next((word for word in arguments if word in COMMANDS), "assetclass")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
