"""`assetclass tokens create | list | revoke`: who may call the REST API.

Belongs here: parsing, calling the engine, showing tokens. Does not: what a role may do.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.text import Text

from assetclass_pipeline.cli.presentation import (
    aside,
    document,
    for_people,
    print_document,
    print_model,
    table,
)
from assetclass_pipeline.cli.records import open_records
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.engine.tokens import create_token, list_tokens, revoke_token
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.token import Role, Token

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]
_NEVER = "never"
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_LONGEST = timedelta(days=3650)

app = typer.Typer()


@app.callback(invoke_without_command=True)
def _tokens(context: typer.Context) -> None:
    """Who may call the REST API, and with which role."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def create(
    *,
    name: Annotated[str, typer.Option(help="Who uses it; the audit log shows this name.")],
    role: Annotated[
        Role,
        typer.Option(
            help="viewer reads; operator also corrects, and rolls back what it has corrected; "
            "admin does everything."
        ),
    ],
    expires: Annotated[
        str, typer.Option(help="After so many minutes, hours or days, or never.", metavar="90d")
    ] = "90d",
    as_json: AsJson = False,
) -> None:
    """Make a token and show it, this once: only its hash is stored."""
    lifetime = _lifetime(expires)
    with open_records("tokens create") as (connection, settings, _):
        secret, token = create_token(
            connection, settings, name=name, role=role, lifetime=lifetime, by=this_user()
        )
    if as_json:
        shown = token.model_dump(mode="json", by_alias=True)
        print_document({"token": secret, **shown})
        return
    until = "for ever" if token.expires_at is None else f"until {_moment(token.expires_at)}"
    aside().print(
        f"Token {token.name} ({token.role}) is valid {until}. Keep it now; it is shown only once:",
        soft_wrap=True,
    )
    # The secret alone on standard output: into a file, a pipe or a variable.
    typer.echo(secret)


@app.command("list")
def list_all(*, as_json: AsJson = False) -> None:
    """Show all tokens, those in use first; never their secrets."""
    with open_records("tokens list") as (connection, settings, _):
        found = list_tokens(connection, settings)
    if as_json:
        print_document({"tokens": [document(token) for token in found]})
        return
    now = datetime.now(UTC)
    made = table("name", "role", "begins", "state", "created", "by", "last used")
    for token in found:
        made.add_row(
            Text(token.name),
            token.role.value,
            Text(f"{token.hint}..."),
            _state(token, now),
            _moment(token.created_at),
            Text(token.created_by),
            _moment(token.last_used_at),
        )
    for_people().print(made if found else "No token was made yet: assetclass tokens create.")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The token's name.", metavar="NAME")],
    *,
    as_json: AsJson = False,
) -> None:
    """Let a token open nothing any more, a second later."""
    with open_records("tokens revoke") as (connection, settings, _):
        token = revoke_token(connection, settings, name, by=this_user())
    if as_json:
        print_model(token)
    else:
        for_people().print(f"Token {token.name} is revoked.", soft_wrap=True)


def _lifetime(said: str) -> timedelta | None:
    if said == _NEVER:
        return None
    found = re.fullmatch(r"(\d{1,6})([mhd])", said)
    lifetime = int(found[1]) * _UNITS[found[2]] if found else timedelta(0)
    if not timedelta(0) < lifetime <= _LONGEST:
        raise InvalidOptionsError(
            f"--expires {said[:40]}: write a time like 30m, 12h or 90d, at most "
            f"{_LONGEST.days}d, or never."
        )
    return lifetime


def _state(token: Token, now: datetime) -> Text:
    if token.revoked_at is not None:
        return Text(f"revoked {_moment(token.revoked_at)}", "dim")
    if not token.is_valid(now):
        return Text("expired", "yellow")
    until = "no end" if token.expires_at is None else f"until {_moment(token.expires_at)}"
    return Text(until, "green")


def _moment(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"
