"""What passes by itself is tried again, nothing happens twice, and no token is ever told."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import pytest

from assetclass_pipeline.client import BASE_PATH, ApiError, ApiUnavailableError, AssetClassClient
from assetclass_pipeline.errors import (
    DatabaseUnavailableError,
    DeadlineExceededError,
    InvalidOptionsError,
    OperationInProgressError,
    OperationNotFoundError,
    RowNotFoundError,
    ServerBusyError,
    TooManyRequestsError,
)
from assetclass_pipeline_tests.client.scripted import (
    DROPPED,
    Said,
    Scripted,
    fine,
    refused,
    scripted,
)
from assetclass_pipeline_tests.ports import free_port

TOKEN = "act_0123456789abcdef"
IDLE: dict[str, Any] = {"isRunning": False, "currentOperation": None, "recentOperations": []}
BUSY = refused(503, "SERVER_BUSY", Retry_After="0")
ACCEPTED = fine({"correctionId": "id-1", "kind": "correction", "status": "requested"})
HTML = b"<html><h1>502 Bad Gateway</h1></html>"


@contextmanager
def asking(*answers: Said, **options: Any) -> Iterator[tuple[Scripted, AssetClassClient]]:
    """The server and a client of it."""
    with scripted(*answers) as server, AssetClassClient(server.url, TOKEN, **options) as client:
        yield server, client


@pytest.mark.parametrize(
    "away",
    [
        DROPPED,
        BUSY,
        refused(503, "DATABASE_UNAVAILABLE", Retry_After="0"),
        refused(429, "TOO_MANY_REQUESTS", Retry_After="0"),
        refused(429, "A_LIMIT_OF_A_PROXY", Retry_After="0"),
        refused(503, "NOT_KNOWN_YET", Retry_After="0"),
        Said(502, HTML, {"Retry-After": "0"}),
        Said(503, HTML, {"Retry-After": format_datetime(datetime(2020, 1, 1, tzinfo=UTC))}),
    ],
    ids=lambda said: f"{said.status} {said.body[:60]!r}",
)
def test_what_passes_by_itself_is_asked_again(away: Said) -> None:
    with scripted(away, away, fine(IDLE)) as server, AssetClassClient(server.url, TOKEN) as client:
        assert client.status().is_running is False
    assert [asked.path for asked in server.asked] == [f"{BASE_PATH}/status?limit=20"] * 3
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (refused(503, "DEADLINE_EXCEEDED", Retry_After="0"), DeadlineExceededError),
        (refused(409, "OPERATION_IN_PROGRESS", {"correctionId": "x"}), OperationInProgressError),
        (refused(500, "INTERNAL_ERROR"), ApiError),
        (Said(404, HTML), ApiUnavailableError),
    ],
)
def test_what_does_not_pass_by_itself_is_raised_at_once(refusal: Said, kind: type) -> None:
    with asking(refusal) as (server, client), pytest.raises(kind):
        client.status()
    assert len(server.asked) == 1


@pytest.mark.parametrize("lost", [DROPPED, BUSY])
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.execute(reason="why"),
        lambda client: client.rollback("id-0", reason="why"),
    ],
    ids=["execute", "rollback"],
)
def test_every_try_of_a_request_carries_the_same_key(
    lost: Said, ask: Callable[[AssetClassClient], str]
) -> None:
    with scripted(lost, lost, ACCEPTED) as server, AssetClassClient(server.url) as client:
        assert ask(client) == "id-1"
        assert ask(client) == "id-1"
    keys = [asked.headers["Idempotency-Key"] for asked in server.asked]
    assert len(keys) == 4
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]
    assert json.loads(server.asked[0].body)["reason"] == "why"


def test_what_may_have_happened_is_not_asked_again() -> None:
    """A second `pause` would be told that it is paused already."""
    with scripted(DROPPED) as server, AssetClassClient(server.url) as client:
        with pytest.raises(ApiUnavailableError, match="cannot be reached"):
            client.pause()
        assert len(server.asked) == 1
    # One that was turned away at the door has not happened.
    with scripted(BUSY, refused(404, "OPERATION_NOT_FOUND")) as server:
        with AssetClassClient(server.url) as client, pytest.raises(OperationNotFoundError):
            client.pause()
        assert len(server.asked) == 2


def test_it_waits_as_long_as_it_is_asked_to() -> None:
    for seconds in (1, 2):
        began = time.monotonic()
        # A date has whole seconds, so some of its first second is over.
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds))
        wait = str(seconds) if seconds == 1 else date
        busy = refused(429, "TOO_MANY_REQUESTS", Retry_After=wait)
        with scripted(busy, fine(IDLE)) as server, AssetClassClient(server.url) as client:
            client.status()
        assert 0.9 < time.monotonic() - began < 30, wait


def test_a_wait_beyond_its_patience_is_the_callers() -> None:
    busy = refused(429, "TOO_MANY_REQUESTS", Retry_After="600")
    with asking(busy) as (server, client), pytest.raises(TooManyRequestsError) as caught:
        client.status()
    assert caught.value.retry_after == 600
    assert len(server.asked) == 1


def test_tries_end() -> None:
    with asking(BUSY, tries=3) as (server, client), pytest.raises(ServerBusyError):
        client.status()
    assert len(server.asked) == 3


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    says = f"{url}{BASE_PATH} cannot be reached"
    with (
        AssetClassClient(url, TOKEN, tries=2) as client,
        pytest.raises(ApiUnavailableError, match=says),
    ):
        client.status()


def test_a_proxy_for_the_outside_is_not_asked_about_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with asking(fine(IDLE), tries=1) as (_, client):
        assert client.status().is_running is False


@pytest.mark.parametrize(
    ("foreign", "says"),
    [
        (Said(403, HTML), "HTTP 403 from .* is not an answer of the AssetClass API"),
        (Said(500, b'["a", "list"]'), "HTTP 500 from .* is not an answer"),
        (Said(401, b'{"errorCode": null, "message": "x"}'), "HTTP 401 from"),
        (Said(200, HTML), "is not the API of the AssetClass pipeline"),
        (Said(200, b'{"data": {"unexpected": 1}}'), "does not fit this client"),
        (Said(200, b"[]"), "is not the API"),
        (Said(308, b"", {"Location": "https://there/x"}), "a redirect to https://there/x"),
    ],
)
def test_what_is_no_answer_of_the_api_is_told_so(foreign: Said, says: str) -> None:
    with scripted(foreign) as server, AssetClassClient(server.url, TOKEN) as client:
        with pytest.raises(ApiUnavailableError, match=says) as caught:
            client.status()
        with pytest.raises(ApiUnavailableError):
            client.execute()
        with pytest.raises(ApiUnavailableError):
            client.health()
    assert "<html>" not in str(caught.value)


def test_an_unknown_code_keeps_its_name_and_where_to_look_for_it() -> None:
    with (
        asking(refused(500, "INTERNAL_ERROR")) as (_, client),
        pytest.raises(ApiError, match=r"It is INTERNAL_ERROR\. \(correlationId c-1\)") as seen,
    ):
        client.metrics()
    assert (seen.value.code, seen.value.status) == ("INTERNAL_ERROR", 500)
    assert (seen.value.correlation_id, ApiError.code) == ("c-1", "INTERNAL_ERROR")
    with (
        asking(refused(418, "TEAPOT")) as (_server, client),
        pytest.raises(ApiError, match=r"^It is TEAPOT\.$") as seen,
    ):
        client.metrics()
    assert (seen.value.code, seen.value.status, seen.value.exit_status) == ("TEAPOT", 418, 1)


def test_a_newer_api_may_say_more() -> None:
    with asking(fine({**IDLE, "nextCursor": None, "more": {"x": 1}})) as (_, client):
        assert client.status().recent_operations == []


def test_who_follows_outlives_an_api_that_restarts(operation: dict[str, Any]) -> None:
    running, ended = ({**operation, "status": status} for status in ("running", "succeeded"))
    script = [fine(running), DROPPED, BUSY, fine(running), fine(ended)]
    seen: list[str] = []
    with scripted(*script) as server, AssetClassClient(server.url, tries=1) as client:
        end = client.follow("id-1", progress=lambda found: seen.append(found.status))
    assert (end.status, seen) == ("succeeded", ["running", "running", "succeeded"])


def test_who_follows_gives_up_in_the_end_and_names_the_operation() -> None:
    away = refused(503, "DATABASE_UNAVAILABLE")
    with (
        asking(away, tries=1) as (_server, client),
        pytest.raises(ApiUnavailableError, match="Operation id-1 goes on") as caught,
    ):
        client.follow("id-1", patience=0)
    assert caught.value.correction_id == "id-1"
    assert not isinstance(caught.value, DatabaseUnavailableError)


@pytest.mark.parametrize("given", ["{}", "{}/", " {}", f"{{}}{BASE_PATH}", f"{{}}{BASE_PATH}/"])
@pytest.mark.parametrize("prefix", ["", "/prices"])
def test_the_address_may_end_as_it_likes(given: str, prefix: str) -> None:
    with scripted(fine(IDLE)) as server:
        client = AssetClassClient(given.format(server.url + prefix))
        client.status()
        client.close()
    assert server.asked[0].path == f"{prefix}{BASE_PATH}/status?limit=20"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "here",
        "127.0.0.1:8000",
        "ftp://host",
        "file:///etc",
        "http://",
        "http://[",
        "http://h:x",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidOptionsError, match="only http and https"):
        AssetClassClient(url)


@pytest.mark.parametrize(
    "url", [f"http://me:{TOKEN}@h", f"https://h/?token={TOKEN}", f"https://h/#{TOKEN}"]
)
def test_a_token_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidOptionsError) as caught:
        AssetClassClient(url)
    assert TOKEN not in "".join(traceback.format_exception(caught.value, chain=True))


@pytest.mark.parametrize("odd", ["", f"{TOKEN}\n", f"two {TOKEN}", f"{TOKEN}é", f"{TOKEN}\x00"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_repeated(odd: str) -> None:
    with pytest.raises(InvalidOptionsError, match="The token must be printable") as caught:
        AssetClassClient("http://127.0.0.1:1", odd)
    assert TOKEN not in str(caught.value)


def test_the_token_is_in_no_repr_and_no_error() -> None:
    with scripted(DROPPED) as server, AssetClassClient(server.url, TOKEN, tries=1) as client:
        with pytest.raises(ApiUnavailableError) as caught:
            client.status()
        shown = [
            repr(client),
            str(client),
            repr(client._connection),
            repr(client._connection._http),
        ]
    shown += ["".join(traceback.format_exception(caught.value, chain=True))]
    assert not any(TOKEN in text for text in shown)
    assert repr(client) == f"AssetClassClient('{server.url}{BASE_PATH}')"


@pytest.mark.parametrize("identity", ["a b", "1?x=2", "ü", "50%", "#1", "..x", "%2e%2e", "BTC/USD"])
def test_ids_arrive_as_they_are(identity: str) -> None:
    with asking(refused(404, "ROW_NOT_FOUND")) as (server, client), pytest.raises(RowNotFoundError):
        client.row_history(identity, symbol="A&B", timestamp="2024-01-01T00:00:00+00:00")
    path, _, query = server.asked[0].path.partition("?")
    assert path == f"{BASE_PATH}/audit/rows/{quote(identity, safe='')}"
    assert query == "symbol=A%26B&timestamp=2024-01-01T00%3A00%3A00%2B00%3A00"


@pytest.mark.parametrize("identity", ["", ".", "..", "../status", "a//b", "a/"])
def test_ids_that_no_path_can_hold_do_not_become_other_calls(identity: str) -> None:
    with scripted(fine(IDLE)) as server, AssetClassClient(server.url) as client:
        with pytest.raises(OperationNotFoundError):
            client.operation(identity)
        with pytest.raises(RowNotFoundError):
            client.row_history(identity)
    assert server.asked == []


def test_no_operation_has_a_slash_in_its_id() -> None:
    with asking(fine(IDLE)) as (server, client), pytest.raises(OperationNotFoundError):
        client.operation("a/b")
    assert server.asked == []


_NOTHING = """reason ticket runId startedAt finishedAt durationSeconds recordsPlanned
    recordsRestored
    recordsConflicting batchesTotal recordsPerSecond etaSeconds silentSeconds backupTable
    qualityBefore qualityAfter error rollbackOf rolledBackBy retryOf pacing preflight
    estimatedSeconds estimateErrorPercent referenceHash windowEndsAt"""
_NUMBERS = "recordsCorrected recordsSkipped recordsFailed batchesDone progressPercent"


@pytest.fixture
def operation() -> dict[str, Any]:
    """An operation as the API shows one."""
    return {
        **dict.fromkeys(_NOTHING.split()),
        **dict.fromkeys(_NUMBERS.split(), 0),
        **{name: [] for name in ("throttle", "changes", "quarantined", "conflicts", "events")},
        **{name: {} for name in ("options", "skippedByReason", "waits")},
        "correctionId": "id-1",
        "kind": "correction",
        "status": "running",
        "phase": "correcting",
        "dryRun": False,
        "abandoned": False,
        "requestedBy": "token me",
        "requestedAt": "2026-01-01T00:00:00Z",
    }
