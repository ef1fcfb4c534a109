"""What must not end the API: a database that is away, clients that go away, floods, its own end."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import httpx
import psycopg
import pytest
from fastapi import APIRouter, Request, Response

from assetclass_pipeline.api.access import LEAST_ROLES
from assetclass_pipeline.api.connections import DatabaseConnection, run_cancellable
from assetclass_pipeline.api.envelope import answer, render
from assetclass_pipeline.database import schema
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.api.service import (
    LONGEST,
    Service,
    make_token,
    serving,
    serving_process,
    wait_until,
)
from assetclass_pipeline_tests.faults.victim import Victim
from assetclass_pipeline_tests.market import Market, MarketConnection

NOWHERE = "postgresql://nobody:s3cret@127.0.0.1:1/nothing"

# So long, and until nobody keeps it asleep. (No lock that it waits for: that has a limit.)
SLEEP: LiteralString = "SELECT pg_sleep(%s) FROM let_go()"
LET_GO: LiteralString = """
    CREATE FUNCTION let_go() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        WHILE NOT pg_try_advisory_xact_lock_shared(4711) LOOP PERFORM pg_sleep(0.01); END LOOP;
        RETURN 1;
    END $$"""

slow_things = APIRouter()


@slow_things.get("/asleep")
async def asleep(request: Request, seconds: float, longest: float = 60) -> Response:
    def sleep(connection: MarketConnection) -> str:
        connection.execute(SLEEP, [seconds])
        return "awake"

    return answer(request, await run_cancellable(request, sleep, seconds=longest))


@slow_things.get("/busy")
def busy(request: Request, seconds: float, connection: DatabaseConnection) -> Response:
    connection.execute(SLEEP, [seconds])
    return answer(request, "done")


@slow_things.get("/bug")
def bug(connection: DatabaseConnection) -> None:
    connection.execute("SELECT s3cret FROM pg_class WHERE 'hush' = relname AND nonsense()")


@slow_things.get("/surprise")
def surprise() -> None:
    raise RuntimeError("s3cret of the inside")


@pytest.fixture(scope="module")
def market(market: Market) -> Market:
    market.connection.execute(LET_GO)
    return market


@pytest.fixture(scope="module")
def service(market: Market) -> Iterator[Service]:
    api = {"connections": 2, "connection_wait": 0.3, "scans": 2, "scan_wait": 0.3}
    with serving(market.dsn, slow_things, api=api) as running:
        yield running


@contextmanager
def nobody_wakes(market: Market) -> Iterator[None]:
    """What sleeps goes on sleeping as long as this lives, however slow the machine."""
    with psycopg.connect(market.dsn) as keeper:
        keeper.execute("SELECT pg_advisory_xact_lock(4711)")
        yield


def asleep_in(market: Market) -> int:
    return int(
        market.value(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' "
            "AND query LIKE 'SELECT pg_sleep%' AND datname = current_database()"
        )
    )


def test_a_statement_whose_client_goes_away_is_ended(service: Service, market: Market) -> None:
    with service.client() as client, pytest.raises(httpx.ReadTimeout):
        client.get("asleep?seconds=60", timeout=0.5)
    wait_until(lambda: asleep_in(market) == 0)


def test_an_answer_that_takes_too_long_is_given_up(service: Service, market: Market) -> None:
    said = service.ask("GET", "asleep?seconds=60&longest=0.3")
    assert (said.status_code, said.json()["errorCode"]) == (503, "DEADLINE_EXCEEDED")
    assert "ASSETCLASS_API__SCAN_DEADLINE" in said.json()["message"]
    assert said.headers["Retry-After"] == "5"
    wait_until(lambda: asleep_in(market) == 0)


def test_an_answer_in_time_is_given(service: Service) -> None:
    assert service.ask("GET", "asleep?seconds=0.1").json()["data"] == "awake"


def test_more_scans_than_places_are_refused_and_the_places_come_back(
    service: Service, market: Market, tokens: dict[Role, str]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        with nobody_wakes(market):
            running = [pool.submit(service.ask, "GET", "asleep?seconds=0") for _ in range(2)]
            wait_until(lambda: asleep_in(market) == 2)
            said = service.ask("GET", "asleep?seconds=0")
            assert (said.status_code, said.json()["errorCode"]) == (503, "SERVER_BUSY")
            # Those do not keep the short ones waiting.
            assert service.ask("GET", "status", tokens[Role.VIEWER]).status_code == 200
        assert [one.result().status_code for one in running] == [200, 200]
    assert service.ask("GET", "asleep?seconds=0").status_code == 200


def test_more_requests_than_connections_are_refused_soon(service: Service, market: Market) -> None:
    with ThreadPoolExecutor(2) as pool:
        with nobody_wakes(market):
            running = [pool.submit(service.ask, "GET", "busy?seconds=0") for _ in range(2)]
            wait_until(lambda: asleep_in(market) == 2)
            said = service.ask("GET", "busy?seconds=0")
            assert (said.status_code, said.json()["errorCode"]) == (503, "SERVER_BUSY")
            assert "Retry-After" in said.headers
        assert [one.result().status_code for one in running] == [200, 200]
    assert service.ask("GET", "busy?seconds=0").status_code == 200


def test_connections_are_used_again_and_never_in_a_broken_state(
    service: Service, market: Market
) -> None:
    for path in ("busy?seconds=0", "bug", "busy?seconds=0"):
        service.ask("GET", path)
    market.connection.execute(
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
        "WHERE application_name = 'assetclass: api' AND datname = current_database()"
    )
    time.sleep(1.1)  # used later than that, it is asked first whether it lives
    assert service.ask("GET", "busy?seconds=0").status_code == 200
    [(number,)] = market.connection.execute(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'assetclass: api' AND datname = current_database()"
    ).fetchall()
    assert number == 1


def test_many_at_once_are_all_answered(market: Market, tokens: dict[Role, str]) -> None:
    """Far more than connections: whoever has one never waits for somebody who wants one."""
    api = {"connections": 2, "connection_wait": LONGEST, "fallback": False}
    with (
        serving(market.dsn, slow_things, api=api) as service,
        service.client(tokens[Role.VIEWER]) as client,
        ThreadPoolExecutor(80) as pool,
    ):
        said = [pool.submit(client.get, "status") for _ in range(160)]
        assert {one.result().status_code for one in said} == {200}


@pytest.mark.parametrize("path", ["bug", "surprise"])
def test_what_nobody_expected_is_told_to_the_log_and_to_nobody_else(
    service: Service, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = service.ask("GET", path, headers={"X-Correlation-ID": f"look-{path}"})
    document = said.json()
    if path == "surprise":
        assert (said.status_code, document["errorCode"]) == (500, "INTERNAL_ERROR")
        assert "s3cret of the inside" in caplog.text
    assert document["correlationId"] == f"look-{path}"
    assert document["success"] is False
    for hushed in ("s3cret", "SELECT", "Traceback", "nonsense", "psycopg", "pg_class"):
        assert hushed not in said.text


def test_as_many_requests_as_the_settings_say_are_open_at_once(market: Market) -> None:
    with serving(market.dsn, slow_things, api={"most_requests": 1}) as service:
        with ThreadPoolExecutor(1) as pool:
            with nobody_wakes(market):
                running = pool.submit(service.ask, "GET", "busy?seconds=0")
                wait_until(lambda: asleep_in(market) == 1)
                said = service.ask("GET", "busy?seconds=0")
                assert (said.status_code, said.json()["errorCode"]) == (503, "SERVER_BUSY")
            assert running.result().status_code == 200
        assert service.ask("GET", "busy?seconds=0").status_code == 200


def test_strangers_take_no_connection() -> None:
    with serving(NOWHERE, api={"fallback": False}) as service:
        for call in LEAST_ROLES:
            method, _, path = call.partition(" ")
            said = service.ask(method, path)
            assert (call, said.status_code) == (call, 401)


def test_without_database_it_starts_and_says_so_without_saying_too_much(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(NOWHERE, api={"connection_wait": 60}) as service:
        down = service.ask("GET", "health")
        assert (down.status_code, down.json()["data"]["isHealthy"]) == (503, False)
        began = time.monotonic()
        said = service.ask("GET", "status", "act_" + "x" * 43)
        assert time.monotonic() - began < LONGEST
        assert (said.status_code, said.json()["errorCode"]) == (503, "DATABASE_UNAVAILABLE")
        assert said.headers["Retry-After"] == "5"
        assert "s3cret" not in said.text
    assert "s3cret" not in caplog.text


def test_a_database_without_our_schema_is_told_what_to_run(
    another_database_url: str,
) -> None:
    with serving(another_database_url, api={"fallback": False}) as service:
        said = service.ask("GET", "status", "act_" + "x" * 43)
        assert (said.status_code, said.json()["errorCode"]) == (503, "SCHEMA_NOT_READY")
        assert "assetclass db upgrade" in said.json()["message"]


def test_a_database_that_stops_and_starts_is_found_again(tmp_path: Path) -> None:
    with Victim(tmp_path / "postgres") as victim:
        dsn = victim.url()
        schema.upgrade(dsn, load_settings())
        token = make_token(dsn)
        with serving(dsn, api={"fallback": False}) as service, service.client(token) as client:
            assert client.get("status").status_code == 200
            victim.stop_immediately()
            # For a moment everybody is answered from what was read last.
            wait_until(lambda: client.get("status").status_code != 200)
            statuses = [client.get("status") for _ in range(3)]
            assert {said.json()["errorCode"] for said in statuses} == {"DATABASE_UNAVAILABLE"}
            # Whose token was good a moment ago is told what fails.
            health = client.get("health").json()
            assert health["data"]["components"]["database"]["isHealthy"] is False
            assert service.ask("GET", "health").json()["data"]["components"] is None
            victim.start()
            if victim.url() != dsn:
                pytest.skip("the server came back on another port")
            wait_until(lambda: client.get("status").status_code == 200)


def waiting_in(market: Market) -> int:
    return int(
        market.value(
            "SELECT count(*) FROM pg_locks WHERE NOT granted "
            "AND relation = 'assetclass.api_token'::regclass"
        )
    )


def test_it_finishes_what_it_has_begun_when_it_is_stopped(
    market: Market, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    """A request that waits in the database when SIGTERM comes gets its answer."""
    with (
        serving_process(
            market.dsn, tmp_path / "log", ASSETCLASS_SESSION__LOCK_TIMEOUT=str(LONGEST)
        ) as running,
        psycopg.connect(market.dsn) as blocker,
        ThreadPoolExecutor(1) as pool,
    ):
        blocker.execute("LOCK assetclass.api_token IN ACCESS EXCLUSIVE MODE")
        waiting = pool.submit(
            running.service.ask,
            "GET",
            "status",
            tokens[Role.VIEWER],
            headers={"X-Correlation-ID": "last"},
        )
        wait_until(lambda: waiting_in(market) == 1)
        ended = threading.Thread(target=running.end, args=[signal.SIGTERM])
        ended.start()
        blocker.rollback()
        said = waiting.result()
        assert said.status_code in {200, 503}
        assert said.json()["correlationId"] == "last"
        ended.join()
        assert running.process.returncode == 128 + signal.SIGTERM
    by_id = [line for line in running.lines if line.get("correlationId") == "last"]
    assert by_id[-1]["status"] == said.status_code


def test_two_processes_serve_the_same_tokens_and_log_no_secret(
    market: Market, tmp_path: Path, tokens: dict[Role, str]
) -> None:
    with (
        serving_process(market.dsn, tmp_path / "one") as one,
        serving_process(market.dsn, tmp_path / "other") as other,
    ):
        for running in (one, other):
            for secret in (tokens[Role.VIEWER], "act_" + "w" * 43):
                running.service.ask(
                    "POST",
                    "execute?reason=hush-query",
                    secret,
                    content=b'{"reason": "hush-body"}',
                    headers={"Cookie": "hush-cookie"},
                )
            said = running.service.ask("GET", "status", tokens[Role.VIEWER])
            assert said.status_code == 200
    for log in (tmp_path / "one", tmp_path / "other"):
        text = log.read_text()
        assert "hush" not in text
        assert "act_" not in text
        assert market.dsn not in text
        requests = [line for line in one.lines if line["message"] == "request"]
        last = requests[-1]
        assert (last["method"], last["status"], last["caller"]) == ("GET", 200, "viewer")
        assert last["path"] == "/api/etl/asset-class-correction/status"
        assert last["milliseconds"] > 0
        assert last["correlationId"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT"), "DATABASE_UNAVAILABLE"),
        (psycopg.errors.FeatureNotSupported("cannot set read-write"), "DATABASE_UNAVAILABLE"),
        (psycopg.errors.InsufficientPrivilege("permission denied"), "MARKET_TABLES_UNUSABLE"),
    ],
)
def test_a_standby_and_a_missing_right_are_no_riddles(error: psycopg.Error, code: str) -> None:
    rendered = render(error)
    assert (rendered.status, rendered.code) == (503, code)
    assert rendered.headers["Retry-After"]


def test_a_port_in_use_is_named(market: Market, service: Service, tmp_path: Path) -> None:
    port = service.url.rpartition(":")[2]
    with (
        pytest.raises(AssertionError, match="ASSETCLASS_API_PORT"),
        serving_process(market.dsn, tmp_path / "log", port=int(port)),
    ):
        pass


def test_every_answer_has_the_headers_of_a_careful_server(service: Service) -> None:
    for path in ("health", "nothing", "/docs", "/openapi.json", "surprise"):
        headers = service.ask("GET", path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Correlation-ID"]
        assert "server" not in headers
        assert "Access-Control-Allow-Origin" not in headers


def test_other_origins_are_let_in_only_where_the_settings_say_so(market: Market) -> None:
    wanted = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
    with serving(market.dsn, api={"cors_origins": ["https://ours.example"]}) as service:
        said = service.ask("OPTIONS", "execute", headers=wanted)
        assert said.headers["Access-Control-Allow-Origin"] == "https://ours.example"
        assert said.headers["X-Correlation-ID"]
        sent = {"Access-Control-Request-Headers": "prefer, if-none-match, idempotency-key"}
        assert service.ask("OPTIONS", "execute", headers={**wanted, **sent}).status_code == 200
        other = service.ask("OPTIONS", "execute", headers={**wanted, "Origin": "https://x.example"})
        assert "Access-Control-Allow-Origin" not in other.headers


@pytest.mark.parametrize(
    "said", ["", "x" * 129, "a b", "a\tb", "-a", "ä".encode().decode("latin-1"), "a;b"]
)
def test_a_correlation_id_is_a_short_word(service: Service, said: str) -> None:
    answered = service.ask("GET", "health", headers=[(b"X-Correlation-ID", said.encode("latin-1"))])
    assert (answered.status_code, answered.json()["errorCode"]) == (400, "INVALID_OPTIONS")
    assert answered.headers["X-Correlation-ID"] != said
    assert answered.json()["correlationId"] == answered.headers["X-Correlation-ID"]
