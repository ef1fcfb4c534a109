"""Who may call what: tokens, roles, limits, callers on this machine, and what is recorded of it."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from assetclass_pipeline.api.access import LEAST_ROLES, Caller, require, require_own
from assetclass_pipeline.api.app import BASE_PATH, PAGES, ROUTERS, describe
from assetclass_pipeline.api.envelope import answer
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.tokens import create_token, list_tokens, revoke_token
from assetclass_pipeline.errors import InvalidOptionsError, TokenExistsError, TokenNotFoundError
from assetclass_pipeline.model.token import Role, digest, is_secret, new_secret
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.api.service import (
    Service,
    audit_entries,
    make_token,
    serving,
    wait_until,
)
from assetclass_pipeline_tests.market import Market

ROW = "audit/rows/1"
_IDS = {"alert_id": "1", "row_id": "1", "correction_id": "00000000-0000-0000-0000-000000000001"}

own_things = APIRouter()


@own_things.post("/own")
def own(request: Request, by: str, caller: Annotated[Caller, require(Role.OPERATOR)]) -> Response:
    require_own(request, caller, by, "This operation")
    return answer(request, caller.requested_by)


def status(service: Service, token: str | None, path: str = ROW, method: str = "GET") -> int:
    return service.ask(method, path, token).status_code


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("call", LEAST_ROLES)
def test_each_role_may_call_what_the_table_says(
    service: Service, tokens: dict[Role, str], call: str, role: Role
) -> None:
    method, _, path = call.partition(" ")
    said = service.ask(method, path.format(**_IDS), tokens[role], content=b"")
    assert (said.status_code == 403) != role.includes(LEAST_ROLES[call])
    if said.status_code == 403:
        assert said.json()["errorCode"] == "FORBIDDEN"
        assert f"role {LEAST_ROLES[call]}" in said.json()["message"]
    assert service.ask(method, path.format(**_IDS)).status_code == 401


ELSEWHERE = {
    "GET health": None,
    "GET /metrics": Role.VIEWER,
    "GET /": Role.VIEWER,
    "GET /docs": None,
    "GET /openapi.json": None,
}
"""Least roles of what stands in no table of the API; None: anybody may look."""


@pytest.mark.parametrize("caller", [None, *Role])
@pytest.mark.parametrize("call", ELSEWHERE)
def test_what_stands_elsewhere_is_for_those_who_may_look(
    service: Service, tokens: dict[Role, str], call: str, caller: Role | None
) -> None:
    method, _, path = call.partition(" ")
    said = service.ask(method, path, None if caller is None else tokens[caller])
    may = ELSEWHERE[call] is None or caller is not None
    assert (said.status_code == 401) != may
    assert said.status_code != 403


def test_every_route_stands_in_a_table() -> None:
    """A new one has to be given a role, or this fails."""
    described = {
        f"{method.upper()} {path.removeprefix(f'{BASE_PATH}/')}"
        for path, methods in describe(load_settings())["paths"].items()
        for method in methods
    }
    undescribed = {
        f"{method} {route.path}"
        for router in PAGES
        for route in router.routes
        if isinstance(route, APIRoute) and not route.include_in_schema
        for method in route.methods or ()
    }
    assert all(
        isinstance(route, APIRoute) and route.include_in_schema
        for router in ROUTERS
        for route in router.routes
    )
    assert described | undescribed | {"GET /openapi.json"} == set(LEAST_ROLES) | set(ELSEWHERE)


def test_roles_include_those_before_them() -> None:
    table = [[one.includes(other) for other in Role] for one in Role]
    assert table == [[True, False, False], [True, True, False], [True, True, True]]


def test_without_a_token_the_answer_says_how_to_get_one(service: Service) -> None:
    said = service.ask("GET", ROW)
    assert said.status_code == 401
    assert said.headers["WWW-Authenticate"].startswith("Bearer")
    assert said.json()["errorCode"] == "UNAUTHORIZED"
    assert "assetclass tokens create" in said.json()["message"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda secret: secret[:-1],
        lambda secret: secret + "A",
        lambda secret: secret.swapcase(),
        lambda secret: secret.removeprefix("act_"),
        lambda secret: secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        lambda _: new_secret(),
        lambda _: "' OR 1=1 --",
        lambda _: "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.",
        lambda _: "act_" + "\xff" * 43,
        digest,
    ],
)
def test_a_token_that_is_not_exactly_right_opens_nothing(market: Market, wrong: Any) -> None:
    with serving(market.dsn) as service:
        secret = make_token(market.dsn, name=f"right-{time.monotonic_ns()}")
        bearer = wrong(secret).encode("latin-1")
        said = service.ask("GET", ROW, headers=[(b"Authorization", b"Bearer " + bearer)])
        assert said.status_code == 401
        assert said.json()["errorCode"] == "UNAUTHORIZED"
        assert status(service, secret) != 401


@pytest.mark.parametrize("scheme", ["Basic {}", "{}", "Bearer{}", "Token {}"])
def test_only_bearer_is_a_way_to_show_a_token(
    service: Service, tokens: dict[Role, str], scheme: str
) -> None:
    header = {"Authorization": scheme.format(tokens[Role.ADMIN])}
    assert service.ask("GET", ROW, headers=header).status_code == 401


def require_closed_in_a_second(service: Service, secret: str) -> None:
    """Whoever comes a second from now is refused; those before may be."""
    closed_at = time.monotonic()
    while True:
        asked_at = time.monotonic()
        if status(service, secret) == 401:
            return
        assert asked_at < closed_at + 1
        time.sleep(0.02)


def test_an_expired_token_opens_nothing(service: Service, market: Market) -> None:
    settings = load_settings()
    with connect(market.dsn, settings, purpose="test") as connection:
        secret, _ = create_token(
            connection,
            settings,
            name="short",
            role=Role.ADMIN,
            lifetime=timedelta(hours=1),
            by="test",
        )
        assert status(service, secret) == 404
        market.connection.execute(
            "UPDATE assetclass.api_token SET expires_at = now() - interval '1 second' "
            "WHERE name = 'short'"
        )
        require_closed_in_a_second(service, secret)


def test_a_revoked_token_opens_nothing_a_second_later(service: Service, market: Market) -> None:
    secret = make_token(market.dsn, name="gone")
    assert status(service, secret) == 404
    settings = load_settings()
    with connect(market.dsn, settings, purpose="test") as connection:
        revoked = revoke_token(connection, settings, "gone", by="me")
        assert revoked.revoked_by == "me"
        with pytest.raises(TokenNotFoundError):
            revoke_token(connection, settings, "gone", by="me")
    require_closed_in_a_second(service, secret)
    # The name is free again, for another secret.
    assert status(service, make_token(market.dsn, name="gone")) == 404
    assert status(service, secret) == 401


def test_secrets_are_stored_nowhere(market: Market) -> None:
    secret = make_token(market.dsn, name="hidden")
    everything = market.connection.execute("SELECT t::text FROM assetclass.api_token t").fetchall()
    everything += market.connection.execute("SELECT a::text FROM assetclass.audit_log a").fetchall()
    assert everything
    assert not [row for (row,) in everything if secret in row or secret[10:] in row]
    assert any(digest(secret) in row for (row,) in everything)
    made = audit_entries(market.dsn, "create_token")[-1]
    assert made["parameters"] == {"name": "hidden", "role": "viewer", "hint": secret[:8]}


def test_a_name_belongs_to_one_token(market: Market) -> None:
    make_token(market.dsn, name="only-one")
    with pytest.raises(TokenExistsError, match="only-one"):
        make_token(market.dsn, name="only-one")
    for name in ("", "with blank", "(unauthenticated)", "oidc:somebody", "a" * 61, "x\ny"):
        with pytest.raises(InvalidOptionsError):
            make_token(market.dsn, name=name)


def test_a_secret_has_256_random_bits() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(is_secret(secret) and len(secret) == 47 for secret in made)


def test_last_use_is_noted_once_a_minute(service: Service, market: Market) -> None:
    secret = make_token(market.dsn, name="busy")
    settings = load_settings()

    def last_used() -> Any:
        with connect(market.dsn, settings, purpose="test") as connection:
            return next(t for t in list_tokens(connection, settings) if t.name == "busy")

    assert last_used().last_used_at is None
    status(service, secret)
    first = last_used().last_used_at
    assert first is not None
    status(service, secret)
    assert last_used().last_used_at == first
    market.connection.execute(
        "UPDATE assetclass.api_token SET last_used_at = now() - interval '61 seconds' "
        "WHERE name = 'busy'"
    )
    wait_until(lambda: status(service, secret) == 404 and last_used().last_used_at > first)


def test_who_fails_too_often_has_to_wait_and_costs_no_question(market: Market) -> None:
    with serving(market.dsn, api={"failed_logins_per_minute": 3}) as service:
        good = make_token(market.dsn, name="good-neighbour")
        assert status(service, good) == 404
        assert [status(service, new_secret()) for _ in range(3)] == [401] * 3
        refused = service.ask("GET", ROW, new_secret())
        assert refused.status_code == 429
        assert refused.json()["errorCode"] == "TOO_MANY_REQUESTS"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        # One that was good before is let past; one that nobody has seen yet has to wait.
        assert status(service, good) == 404
        assert status(service, make_token(market.dsn, name="newcomer")) == 429


def test_a_wrong_token_is_looked_up_once(market: Market) -> None:
    with serving(market.dsn) as service:
        wrong = new_secret()
        assert status(service, wrong) == 401
        with psycopg.connect(market.dsn) as blocker:
            blocker.execute("LOCK assetclass.api_token IN ACCESS EXCLUSIVE MODE")
            assert status(service, wrong) == 401
            assert status(service, "act_short") == 401


def test_a_token_has_a_number_of_requests(market: Market) -> None:
    with serving(market.dsn, api={"requests_per_minute_of_token": 2}) as service:
        one, other = (make_token(market.dsn, name=name) for name in ("eager", "calm"))
        assert [status(service, one) for _ in range(3)] == [404, 404, 429]
        assert status(service, other) == 404
        wait_until(
            lambda: any(
                entry["actor"] == "eager" and entry["outcome"] == "TOO_MANY_REQUESTS"
                for entry in audit_entries(market.dsn, "call_api")
            )
        )


def test_an_address_has_a_number_of_requests(market: Market) -> None:
    with serving(market.dsn, api={"requests_per_minute_of_address": 2}) as service:
        asked = {"X-Correlation-ID": "too-many"}
        said = [service.ask("GET", "health", headers=asked) for _ in range(3)]
        assert said[2].status_code == 429
        assert said[2].json()["errorCode"] == "TOO_MANY_REQUESTS"
        assert "Retry-After" in said[2].headers
    [recorded] = [
        entry
        for entry in audit_entries(market.dsn, "call_api")
        if entry["correlation_id"] == "too-many"
    ]
    assert (recorded["outcome"], recorded["origin"]) == ("TOO_MANY_REQUESTS", "127.0.0.1")


@pytest.mark.parametrize(("trusted", "origin"), [([], "127.0.0.1"), (["127.0.0.1"], "203.0.113.7")])
def test_the_address_is_that_of_the_proxy_unless_its_word_is_trusted(
    market: Market, trusted: list[str], origin: str
) -> None:
    """Else whoever is limited would write another address into a header."""
    asked = {
        "X-Forwarded-For": "198.51.100.1, 203.0.113.7",
        "X-Correlation-ID": f"proxy-{len(trusted)}",
    }
    with serving(market.dsn, api={"trusted_proxies": trusted}) as service:
        assert service.ask("GET", ROW, headers=asked).status_code == 401
    [recorded] = [
        entry
        for entry in audit_entries(market.dsn, "call_api")
        if entry["correlation_id"] == asked["X-Correlation-ID"]
    ]
    assert recorded["origin"] == origin


def test_refusals_are_recorded_and_a_flood_of_them_is_counted(market: Market) -> None:
    before = len(audit_entries(market.dsn, "call_api"))
    viewer = make_token(market.dsn, name="nosy")
    with serving(market.dsn, own_things) as service:
        began = time.monotonic()
        for _ in range(15):
            service.ask("GET", ROW, "act_wrong", headers={"X-Correlation-ID": "flood"})
        seconds = time.monotonic() - began
        assert service.ask("POST", "own?by=x", viewer).status_code == 403
    recorded = audit_entries(market.dsn, "call_api")[before:]
    # Another server may just have written what it had counted before.
    of_flood = [entry for entry in recorded if entry["correlation_id"] == "flood"]
    of_unknown = [entry for entry in of_flood if entry["actor"] == "(unauthenticated)"]
    # The first one, then one a second, and the rest at the end.
    assert 1 <= len(of_unknown) <= 2 + seconds
    assert sum(entry["parameters"].get("times", 1) for entry in of_unknown) == 15
    assert of_unknown[0]["outcome"] == "UNAUTHORIZED"
    assert of_unknown[0]["origin"] == "127.0.0.1"
    assert of_unknown[0]["correlation_id"] == "flood"
    assert of_unknown[0]["parameters"]["call"] == f"GET {BASE_PATH}/{ROW}"
    [of_viewer] = [entry for entry in recorded if entry["actor"] == "nosy"]
    assert of_viewer["outcome"] == "FORBIDDEN"


def test_what_is_ones_own_is_by_who_asked_for_it(market: Market) -> None:
    operator = make_token(market.dsn, Role.OPERATOR, name="ops")
    admin = make_token(market.dsn, Role.ADMIN, name="boss")
    with serving(market.dsn, own_things) as service:
        assert service.ask("POST", "own?by=token ops", operator).json()["data"] == "token ops"
        assert service.ask("POST", "own?by=token boss", operator).status_code == 403
        assert service.ask("POST", "own?by=ops", operator).status_code == 403
        assert service.ask("POST", "own?by=token ops", admin).status_code == 200


@pytest.fixture(scope="module")
def open_service(market: Market) -> Iterator[Service]:
    """The opt-in for callers on this machine."""
    with serving(market.dsn, own_things, api_anonymous_role="viewer") as running:
        yield running


def test_without_token_a_caller_on_this_machine_has_the_role_of_the_settings(
    open_service: Service,
) -> None:
    assert status(open_service, None) == 404
    assert status(open_service, None, "own?by=x", "POST") == 403


def test_a_wrong_token_is_still_wrong(open_service: Service) -> None:
    assert status(open_service, "act_wrong") == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "elsewhere.example"},
        {"Host": "127.0.0.1.elsewhere.example:8000"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
        {"X-Real-IP": "127.0.0.1"},
    ],
)
def test_a_web_page_and_a_proxy_are_nobody_on_this_machine(
    open_service: Service, headers: dict[str, str]
) -> None:
    assert open_service.ask("GET", ROW, headers=headers).status_code == 401


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "[::1]:8000", "127.0.0.1"])
def test_names_of_this_machine_are_fine(open_service: Service, host: str) -> None:
    assert open_service.ask("GET", ROW, headers={"Host": host}).status_code == 404
