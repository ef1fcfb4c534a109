"""Watching over HTTP: measuring, status, pages, tags, waiting, events; nobody waits for nobody."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from assetclass_pipeline.api.app import BASE_PATH
from assetclass_pipeline.api.routes import status as status_routes
from assetclass_pipeline.model.token import Role
from assetclass_pipeline_tests.api.service import LONGEST, Service, serving, wait_until
from assetclass_pipeline_tests.engine.runs import correct_now, undo_now
from assetclass_pipeline_tests.market import Market

ROWS = 60


@pytest.fixture(autouse=True)
def _fresh(market: Market) -> None:
    """No operation yet, and every row missing."""
    market.execute("TRUNCATE assetclass.operation, assetclass.idempotency_key CASCADE")
    market.execute("TRUNCATE {}", market.market_identifier)
    market.execute("TRUNCATE {}", market.symbols_identifier)
    market.fill(ROWS)


@pytest.fixture(scope="module")
def viewer(service: Service, tokens: dict[Role, str]) -> Iterator[httpx.Client]:
    with service.client(tokens[Role.VIEWER]) as client:
        yield client


@pytest.fixture(scope="module")
def operator(service: Service, tokens: dict[Role, str]) -> Iterator[httpx.Client]:
    with service.client(tokens[Role.OPERATOR]) as client:
        yield client


def damage(market: Market) -> None:
    market.execute("UPDATE {} SET asset_class = NULL", market.market_identifier)


def ids(answer: httpx.Response) -> list[str]:
    return [entry["correctionId"] for entry in answer.json()["data"]["recentOperations"]]


def test_analyze_is_the_integrity_report(viewer: httpx.Client) -> None:
    response = viewer.get("analyze", params={"top": 3})
    assert response.status_code == 200
    report = response.json()["data"]
    assert (report["totalRecords"], report["correctable"]) == (ROWS, ROWS)
    assert (report["completeness"], report["qualityScore"]) == (0.0, 0.0)
    assert len(report["bySymbol"]) == 3


@pytest.mark.parametrize("top", ["0", "1001", "many"])
def test_analyze_says_how_many_symbols_it_shows(viewer: httpx.Client, top: str) -> None:
    response = viewer.get("analyze", params={"top": top})
    assert response.status_code == 400
    assert "top" in response.json()["message"]


@pytest.mark.parametrize("path", ["analyze", "status", "status/{}"])
def test_what_the_caller_has_already_is_not_sent_again(
    viewer: httpx.Client, market: Market, path: str
) -> None:
    path = path.format(correct_now(market).correction_id)
    first = viewer.get(path)
    tag = first.headers["ETag"]
    for said in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
        again = viewer.get(path, headers={"If-None-Match": said})
        assert (again.status_code, again.content) == (304, b""), said
        assert again.headers["ETag"] == tag
    assert viewer.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    damage(market)
    undone = correct_now(market)
    undo_now(market, undone)
    if "/" not in path:
        assert viewer.get(path, headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize("body", ["", "{}", '{"batchSize": 1000, "dryRun": false}'])
def test_preview_tells_what_would_change_and_changes_nothing(
    operator: httpx.Client, market: Market, body: str
) -> None:
    found = operator.post("preview", content=body).json()["data"]
    assert found["records"] == ROWS
    assert sum(change["records"] for change in found["changes"]) == ROWS
    assert len(found["samples"]) == 50
    assert {"low", "high"} <= set(found["estimatedSeconds"] or {"low": 0, "high": 0})
    assert set(market.classes().values()) == {None}
    assert market.value("SELECT count(*) FROM assetclass.operation") == 0


def test_validate_says_which_thresholds_are_not_met(operator: httpx.Client, market: Market) -> None:
    failed = operator.post("validate").json()
    assert failed["success"]
    assert not failed["data"]["passed"]
    assert "completeness" in failed["message"]
    correct_now(market)
    assert operator.post("validate", content="{}").json()["data"]["passed"]
    assert operator.post("validate", json={"depth": 3}).status_code == 400


def test_status_of_nothing(viewer: httpx.Client) -> None:
    data = viewer.get("status").json()["data"]
    assert data == {
        "isRunning": False,
        "currentOperation": None,
        "recentOperations": [],
        "nextCursor": None,
    }


def test_status_lists_what_changed_rows_and_all_where_asked(
    viewer: httpx.Client, market: Market
) -> None:
    dry = correct_now(market, dry_run=True).correction_id
    changed = correct_now(market).correction_id
    idle = correct_now(market).correction_id
    assert ids(viewer.get("status")) == [changed]
    assert ids(viewer.get("status", params={"include": "all"})) == [idle, changed, dry]
    assert viewer.get("status", params={"include": "some"}).status_code == 400


def test_pages_follow_each_other_without_gap_or_repeat(
    viewer: httpx.Client, market: Market
) -> None:
    made = [correct_now(market, dry_run=True).correction_id for _ in range(5)]
    # At the same instant their ids tell which comes first.
    market.execute("UPDATE assetclass.operation SET requested_at = '2026-01-01 00:00:00.123456+00'")
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = viewer.get("status", params={"include": "all", "limit": 2, **cursor})
        seen += ids(page)
        following = page.json()["data"]["nextCursor"]
        if following is None:
            break
        cursor = {"cursor": following}
    assert len(seen) == 5
    assert set(seen) == set(made)


@pytest.mark.parametrize("cursor", ["x", "%%%", "bm90aGluZw", "fHx8", "ä", "9999"])
def test_a_cursor_of_ones_own_is_refused(viewer: httpx.Client, cursor: str) -> None:
    response = viewer.get("status", params={"cursor": cursor})
    assert response.status_code == 400
    assert "cursor" in response.json()["message"]


def test_waiting_ends_with_the_operation(
    viewer: httpx.Client, operator: httpx.Client, market: Market
) -> None:
    correction_id = operator.post("execute", json={}).json()["data"]["correctionId"]
    began = time.monotonic()
    threading.Timer(0.5, operator.post, ["cancel"]).start()
    path, patient = f"status/{correction_id}", 2 * LONGEST
    found = viewer.get(path, params={"wait": 60}, timeout=patient).json()["data"]
    assert found["status"] == "cancelled"
    assert 0.4 < time.monotonic() - began < LONGEST
    assert viewer.get(f"status/{correction_id}", params={"wait": 61}).status_code == 400
    assert market.value("SELECT count(*) FROM assetclass.operation") == 1


def test_who_waits_holds_no_connection(
    market: Market, tokens: dict[Role, str], operator: httpx.Client
) -> None:
    correction_id = operator.post("execute", json={}).json()["data"]["correctionId"]
    path, token = f"status/{correction_id}", tokens[Role.VIEWER]
    with (
        serving(market.dsn, api={"connections": 1}) as small,
        small.client(token) as client,
        ThreadPoolExecutor(5) as pool,
    ):
        waiting = [pool.submit(client.get, path, params={"wait": 60}, timeout=90) for _ in range(5)]
        response = small.ask("GET", "status", token)
        assert response.status_code == 200
        assert not any(waiter.done() for waiter in waiting)
        operator.post("cancel")
        assert {waiter.result().json()["data"]["status"] for waiter in waiting} == {"cancelled"}


def events_of(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Events of a stream, each as its fields; comments are left out."""
    event: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line.startswith(":"):
            continue
        if line:
            event[name] = value
        elif event:
            yield event
            event = {}


@contextmanager
def stream(
    client: httpx.Client, correction_id: str, **headers: str
) -> Iterator[tuple[httpx.Response, Iterator[dict[str, str]]]]:
    with client.stream("GET", f"status/{correction_id}/events", headers=headers) as response:
        yield response, events_of(response.iter_lines())


def test_events_tell_of_each_change_until_the_end(
    viewer: httpx.Client, operator: httpx.Client
) -> None:
    correction_id = operator.post("execute", json={}).json()["data"]["correctionId"]
    with stream(viewer, correction_id) as (response, events):
        assert response.headers["Content-Type"].startswith("text/event-stream")
        first = next(events)
        assert first["event"] == "progress"
        assert json.loads(first["data"])["status"] == "requested"
        operator.post("cancel")
        last = next(events)
        assert last["event"] == "end"
        assert json.loads(last["data"])["status"] == "cancelled"
        assert next(events, None) is None
    again = viewer.get(f"status/{correction_id}/events", headers={"Last-Event-ID": last["id"]})
    assert again.status_code == 204
    with stream(viewer, correction_id, **{"Last-Event-ID": first["id"]}) as (_, events):
        assert next(events)["event"] == "end"


def test_events_of_an_unknown_operation_are_not_found(viewer: httpx.Client) -> None:
    assert viewer.get(f"status/{uuid4()}/events").status_code == 404


def test_streams_are_bounded_and_give_their_place_back(
    viewer: httpx.Client,
    operator: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status_routes, "_streams", threading.BoundedSemaphore(1))
    correction_id = operator.post("execute", json={}).json()["data"]["correctionId"]
    with stream(viewer, correction_id) as (_, events):
        next(events)
        refused = operator.get(f"status/{correction_id}/events")
        assert (refused.status_code, refused.json()["errorCode"]) == (503, "SERVER_BUSY")
    operator.post("cancel")

    def is_free() -> bool:
        return operator.get(f"status/{correction_id}/events").status_code == 200

    wait_until(is_free)


def scans_at_work(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE '%api scan%' AND state <> 'idle'"
        ).fetchone()
    return int(row[0]) if row else 0


@contextmanager
def endless_analysis(market: Market) -> Iterator[None]:
    """Reading the reference takes a minute."""
    market.execute("ALTER TABLE {} RENAME TO real_symbols", market.symbols_identifier)
    market.execute(
        "CREATE VIEW {} AS SELECT s.* FROM real_symbols s, pg_sleep(60)", market.symbols_identifier
    )
    try:
        yield
    finally:
        market.execute("DROP VIEW {}", market.symbols_identifier)
        market.execute("ALTER TABLE real_symbols RENAME TO symbols")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "analyze"), ("POST", "preview"), ("POST", "validate")]
)
def test_what_nobody_waits_for_any_more_is_ended_in_the_database(
    service: Service, tokens: dict[Role, str], market: Market, method: str, path: str
) -> None:
    head = (
        f"{method} {BASE_PATH}/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
        f"Authorization: Bearer {tokens[Role.OPERATOR]}\r\n\r\n"
    )
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with endless_analysis(market):
        with socket.create_connection(address) as connection:
            connection.sendall(head.encode())
            wait_until(lambda: scans_at_work(market.dsn) == 1)
        # It went away without an answer.
        wait_until(lambda: scans_at_work(market.dsn) == 0)


def test_what_takes_too_long_is_ended_in_the_database(
    market: Market, tokens: dict[Role, str]
) -> None:
    with endless_analysis(market), serving(market.dsn, api={"scan_deadline": 1}) as hasty:
        response = hasty.ask("GET", "analyze", tokens[Role.VIEWER])
        assert (response.status_code, response.json()["errorCode"]) == (503, "DEADLINE_EXCEEDED")
        wait_until(lambda: scans_at_work(market.dsn) == 0)
