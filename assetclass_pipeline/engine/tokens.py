"""API tokens: made, listed, revoked, and recognised by the hash of their secret.

Belongs here: the table of tokens and what the audit log says of it. Does not: the shape of a
secret (model/token.py), and what a role may do (the API).
"""

import hmac
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.audit import record
from assetclass_pipeline.errors import (
    InvalidOptionsError,
    TokenExistsError,
    TokenNotFoundError,
)
from assetclass_pipeline.model.audit import Actor, AuditEntry
from assetclass_pipeline.model.token import NAME_PATTERN, Role, Token, digest, hint, new_secret
from assetclass_pipeline.settings import Settings


def create_token(
    connection: Connection[TupleRow],
    settings: Settings,
    *,
    name: str,
    role: Role,
    lifetime: timedelta | None,
    by: str,
) -> tuple[str, Token]:
    """A new token: its secret, which is stored nowhere, and what is known of it.

    Without `lifetime` it does not expire. Raises InvalidOptionsError for a name that is none,
    TokenExistsError while another of this name is not revoked.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InvalidOptionsError(
            f"{name[:80]!r} cannot be a token's name: write up to 60 letters, digits, and . _ - @, "
            "like nightly-script."
        )
    secret = new_secret()
    values = {
        "name": name,
        "role": role.value,
        "hash": digest(secret),
        "hint": hint(secret),
        "by": by,
        "expires_at": None if lifetime is None else datetime.now(UTC) + lifetime,
    }
    try:
        token = _change(connection, settings, "create", values, by)
    except psycopg.errors.UniqueViolation:
        raise TokenExistsError(
            f"There is a token {name} already. Revoke it first (`assetclass tokens revoke {name}`) "
            "or choose another name: the audit log knows callers by it."
        ) from None
    assert token is not None  # noqa: S101 - an INSERT returns its row
    return secret, token


def list_tokens(connection: Connection[TupleRow], settings: Settings) -> list[Token]:
    """All tokens ever made, those in use first."""
    with (
        transaction(connection, settings, read_only=True),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        rows = cursor.execute(query("tokens", "all")).fetchall()
    return [Token.model_validate(row) for row in rows]


def revoke_token(
    connection: Connection[TupleRow], settings: Settings, name: str, *, by: str
) -> Token:
    """The token opens nothing any more. Raises TokenNotFoundError when none in use is named so.

    Requests that it has begun go on.
    """
    values = {"name": name, "by": by}
    token = _change(connection, settings, "revoke", values, by)
    if token is None:
        raise TokenNotFoundError(
            f"No token in use has the name {name[:80]}. `assetclass tokens list` shows them."
        )
    return token


def recognise(connection: Connection[TupleRow], settings: Settings, secret: str) -> Token | None:
    """The token with this secret, when it is neither expired nor revoked; its use is noted.

    The index narrows the search down by hash: what that tells by its time is about the hash of
    what the caller sent, and nothing about the secret.
    """
    hashed = digest(secret)
    with (
        transaction(connection, settings, read_only=True),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        row = cursor.execute(query("tokens", "of_hash"), {"hash": hashed}).fetchone()
    if row is None or not hmac.compare_digest(row.pop("hash"), hashed):
        return None
    now, unnoted = row.pop("now"), row.pop("unnoted")
    token = Token.model_validate(row)
    if not token.is_valid(now):
        return None
    if unnoted:
        # Nobody is kept out because that could not be written, by a standby for example.
        with suppress(psycopg.Error), transaction(connection, settings) as cursor:
            cursor.execute(query("tokens", "note_use"), {"hash": hashed})
    return token


def has_valid_token(connection: Connection[TupleRow], settings: Settings) -> bool:
    """Whether anybody could call the API."""
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("tokens", "any_valid")).fetchone()
    return bool(row and row[0])


def _change(
    connection: Connection[TupleRow],
    settings: Settings,
    statement: str,
    values: dict[str, Any],
    by: str,
) -> Token | None:
    with transaction(connection, settings) as opened:
        with opened.connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(query("tokens", statement), values).fetchone()
        if row is None:
            return None
        token = Token.model_validate(row)
        said = {"name": token.name, "role": token.role.value, "hint": token.hint}
        if token.expires_at is not None:
            said["expiresAt"] = token.expires_at.isoformat()
        record(opened, AuditEntry(Actor.of_requester(by), f"{statement}_token", "done", said))
    return token
