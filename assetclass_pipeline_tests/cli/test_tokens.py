"""`assetclass tokens`: made once, shown once, listed without secrets, revoked."""

from datetime import timedelta

import pytest

from assetclass_pipeline.cli.tokens import _lifetime
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.token import is_secret
from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Market


def test_a_token_is_made_listed_and_revoked(assetclass: Command, market: Market) -> None:
    made = assetclass("tokens", "create", "--name", "nightly", "--role", "operator", "--json")
    assert made.status == 0, made.explain()
    assert made.err == ""
    secret = made.document["token"]
    assert is_secret(secret)
    assert made.document["role"] == "operator"
    assert made.document["expiresAt"] is not None

    people = assetclass(
        "tokens", "create", "--name", "ops", "--role", "viewer", "--expires", "never"
    )
    assert is_secret(people.out.strip())
    assert "for ever" in people.err

    taken = assetclass("tokens", "create", "--name", "ops", "--role", "viewer", "--json")
    assert (taken.status, taken.document["errorCode"]) == (1, "TOKEN_EXISTS")

    listed = assetclass("tokens", "list", "--json")
    assert [token["name"] for token in listed.document["tokens"]] == ["nightly", "ops"]
    assert secret not in listed.out
    shown = assetclass("tokens", "list")
    assert secret[:8] in shown.out
    assert secret not in shown.out

    revoked = assetclass("tokens", "revoke", "nightly", "--json")
    assert revoked.document["revokedAt"] is not None
    again = assetclass("tokens", "revoke", "nightly", "--json")
    assert (again.status, again.document["errorCode"]) == (4, "TOKEN_NOT_FOUND")
    actions = market.connection.execute(
        "SELECT action, actor_kind, parameters ->> 'name' FROM assetclass.audit_log "
        "WHERE action LIKE '%token' ORDER BY number"
    ).fetchall()
    assert actions == [
        ("create_token", "os_user", "nightly"),
        ("create_token", "os_user", "ops"),
        ("revoke_token", "os_user", "nightly"),
    ]


@pytest.mark.parametrize("expires", ["0d", "90", "ten days", "-1d", "99999d", "d"])
def test_a_life_that_is_none_is_refused(expires: str) -> None:
    with pytest.raises(InvalidOptionsError, match="90d"):
        _lifetime(expires)


@pytest.mark.parametrize(
    ("expires", "lifetime"),
    [
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("90d", timedelta(days=90)),
        ("never", None),
    ],
)
def test_lives(expires: str, lifetime: timedelta | None) -> None:
    assert _lifetime(expires) == lifetime


def test_a_role_that_is_none_is_refused(assetclass: Command) -> None:
    said = assetclass("tokens", "create", "--name", "a", "--role", "root")
    assert said.status == 2
    assert "viewer" in said.err
