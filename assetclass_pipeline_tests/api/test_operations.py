"""Operating over HTTP: what is asked is written down, once; who asks is told at once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from assetclass_pipeline.api.app import BASE_PATH
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.claiming import CorrectionRequest
from assetclass_pipeline.engine.control import ask_to_cancel
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.engine.requests import waiting_request
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.model.operation import Kind, Operation
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.token import Role
from assetclass_pipeline_tests.api.service import (
    LONGEST,
    Service,
    audit_entries,
    make_token,
    serving,
    serving_process,
    wait_until,
)
from assetclass_pipeline_tests.market import Market

CLIENTS = 20
ROWS = 60

STANDARD = (
    '{"batchSize": 1000, "createBackup": true, "onlyProcessNullAssetClass": true,'
    ' "validateAfterEachBatch": true, "dryRun": false}'
)
CONSERVATIVE = (
    '{"batchSize": 500, "maxRecordsToProcess": 10000, "createBackup": true,'
    ' "onlyProcessNullAssetClass": true, "overwriteExistingValues": false,'
    ' "validateAfterEachBatch": true, "timeout": "01:00:00", "dryRun": false}'
)
LIMITED = '{"maxRecordsToProcess": 50000, "batchSize": 500, "timeout": "03:00:00"}'


@pytest.fixture(autouse=True)
def _fresh(market: Market) -> None:
    """No operation yet, and every row missing."""
    market.execute("TRUNCATE assetclass.operation, assetclass.idempotency_key CASCADE")
    market.execute("TRUNCATE {}", market.market_identifier)
    market.execute("TRUNCATE {}", market.symbols_identifier)
    market.fill(ROWS)


@pytest.fixture(scope="module")
def operator(service: Service, tokens: dict[Role, str]) -> Iterator[httpx.Client]:
    with service.client(tokens[Role.OPERATOR]) as client:
        yield client


@pytest.fixture(scope="module")
def admin(service: Service, tokens: dict[Role, str]) -> Iterator[httpx.Client]:
    with service.client(tokens[Role.ADMIN]) as client:
        yield client


def take_up(market: Market) -> Operation:
    """Do what is asked for, as the run does that the sensor launches."""
    with connect(market.dsn, market.settings, purpose="test") as connection:
        asked = waiting_request(connection, market.settings)
    assert asked is not None
    if asked.kind is Kind.CORRECTION:
        options = CorrectionOptions.model_validate(asked.options)
        correction = CorrectionRequest(asked.correction_id, options, only_while_active=True)
        return correct(market.dsn, market.settings, correction)
    undo = RollbackOptions.model_validate(asked.options)
    rollback = RollbackRequest(
        asked.correction_id, str(asked.rollback_of), undo, only_while_active=True
    )
    return roll_back(market.dsn, market.settings, rollback)


def accepted(response: httpx.Response) -> str:
    """The correctionId of an operation that was accepted."""
    assert response.status_code == 202, response.text
    found = response.json()
    assert found["success"]
    assert found["errorCode"] is None
    assert response.headers["Location"] == found["data"].get(
        "statusUrl", response.headers["Location"]
    )
    return str(found["data"]["correctionId"])


def corrected(client: httpx.Client, market: Market, **options: Any) -> str:
    correction_id = accepted(client.post("execute", json=options))
    take_up(market)
    return correction_id


def test_execute_is_accepted_and_can_be_looked_at(
    service: Service, operator: httpx.Client, market: Market
) -> None:
    response = operator.post(
        "execute",
        json={"batchSize": 10, "reason": "a feed without classes", "ticket": "OPS-1"},
        headers={"X-Correlation-ID": "my-own-id"},
    )
    correction_id = accepted(response)
    assert response.headers["Location"] == f"{BASE_PATH}/status/{correction_id}"
    assert response.json()["correlationId"] == "my-own-id"
    found = operator.get(service.url + response.headers["Location"]).json()["data"]
    assert (found["status"], found["requestedBy"]) == ("requested", "token operator")
    assert (found["reason"], found["ticket"]) == ("a feed without classes", "OPS-1")
    assert found["correlationId"] == "my-own-id"
    assert take_up(market).records_corrected == ROWS


@pytest.mark.parametrize("content", [STANDARD, CONSERVATIVE, LIMITED, "", "{}"])
@pytest.mark.parametrize("kind", [None, "application/json", "application/x-www-form-urlencoded"])
def test_the_guides_bodies_are_taken_as_written(
    service: Service, tokens: dict[Role, str], content: str, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = service.ask(
        "POST", "execute", tokens[Role.OPERATOR], content=content, headers=headers
    )
    accepted(response)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"onlyProcessNullAssetClass": True, "overwriteExistingValues": True}, "contradict"),
        ({"batchSize": 0}, "batchSize"),
        ({"batchSize": 10_001}, "10000"),
        ({"maxRecordsToProcess": 0}, "maxRecordsToProcess"),
        ({"timeout": "00:00:59"}, "00:01:00"),
        ({"timeout": "25:00:00"}, "24:00:00"),
        ({"timeout": 3}, "HH:MM:SS"),
        ({"targetSymbols": []}, "targetSymbols"),
        ({"batchsize": 5}, "unknown option"),
        ({"reason": "x" * 1001}, "reason"),
        ([], "dictionary"),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", ["execute", "preview"])
def test_a_body_that_cannot_be_used_names_field_and_limit(
    operator: httpx.Client, market: Market, call: str, body: object, named: str
) -> None:
    response = operator.post(call, json=body)
    assert response.status_code == 400
    assert response.json()["errorCode"] == "INVALID_OPTIONS"
    assert named in response.json()["message"]
    assert market.value("SELECT count(*) FROM assetclass.operation") == 0


CLIENT = """
import http.client, sys
port, path, token = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
connection.connect()
print("ready", flush=True)
sys.stdin.readline()
connection.request("POST", path, b"{}", {"Authorization": "Bearer " + token})
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


def test_of_many_clients_at_the_same_instant_exactly_one_is_accepted(
    tokens: dict[Role, str], market: Market, tmp_path: Path
) -> None:
    """Twenty processes ask two processes of the API; all are connected before the first asks."""
    # Who is connected first waits until all are.
    patience = str(2 * LONGEST)
    with (
        serving_process(market.dsn, tmp_path / "one", ASSETCLASS_API__READ_TIMEOUT=patience) as one,
        serving_process(
            market.dsn, tmp_path / "other", ASSETCLASS_API__READ_TIMEOUT=patience
        ) as other,
        ExitStack() as stack,
    ):
        clients = []
        for number in range(CLIENTS):
            port = (one, other)[number % 2].service.url.rpartition(":")[2]
            command = [sys.executable, "-IS", "-c", CLIENT, port, f"{BASE_PATH}/execute"]
            client = subprocess.Popen(
                [*command, tokens[Role.OPERATOR]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            clients.append(stack.enter_context(client))
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        said = [client.communicate(timeout=60)[0].partition(" ") for client in clients]
    answers = [(int(status), json.loads(body)) for status, _, body in said]
    (accepted_as, winner), *others = sorted(answers, key=lambda answer: answer[0])
    assert accepted_as == 202
    assert len(others) == CLIENTS - 1
    for status, refusal in others:
        assert (status, refusal["errorCode"]) == (409, "OPERATION_IN_PROGRESS")
        assert refusal["data"] == {"correctionId": winner["data"]["correctionId"]}
    assert market.value("SELECT count(*) FROM assetclass.operation") == 1


@pytest.fixture
def processes(tokens: dict[Role, str], market: Market) -> Iterator[list[httpx.Client]]:
    """Clients of two, whose lists may be older than any answer takes."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                stack.enter_context(serving(market.dsn, api={"status_age": 2})).client(
                    tokens[Role.OPERATOR]
                )
            )
            for _ in range(2)
        ]


def at_work(client: httpx.Client) -> str | None:
    """correctionId of the operation that the list calls active."""
    current = client.get("status").json()["data"]["currentOperation"]
    return None if current is None else str(current["correctionId"])


def test_who_changes_something_sees_it_on_every_process(processes: list[httpx.Client]) -> None:
    """Although both have just read the list, for somebody else."""
    here, elsewhere = processes
    assert [at_work(client) for client in processes] == [None, None]
    correction_id = accepted(here.post("execute"))
    assert [at_work(client) for client in processes] == [correction_id] * 2
    assert elsewhere.post("cancel").status_code == 202
    assert [at_work(client) for client in processes] == [None, None]


def test_who_has_waited_for_the_end_finds_it_listed_on_every_process(
    processes: list[httpx.Client], market: Market
) -> None:
    here, elsewhere = processes
    correction_id = accepted(here.post("execute"))

    def end_it_when_both_lists_were_read() -> None:
        assert [at_work(client) for client in processes] == [correction_id] * 2
        ask_to_cancel(market.connection, market.settings, correction_id, by="test")

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end_it_when_both_lists_were_read)
        seen = here.get(f"status/{correction_id}", params={"wait": 30}, timeout=2 * LONGEST)
        ending.result()
    assert seen.json()["data"]["status"] == "cancelled"
    assert at_work(elsewhere) is None


def test_who_sees_the_end_finds_it_listed(processes: list[httpx.Client], market: Market) -> None:
    here, _ = processes
    correction_id = accepted(here.post("execute"))
    assert at_work(here) == correction_id
    ask_to_cancel(market.connection, market.settings, correction_id, by="test")
    assert here.get(f"status/{correction_id}").json()["data"]["status"] == "cancelled"
    assert at_work(here) is None


def test_the_same_key_asks_once(operator: httpx.Client, market: Market) -> None:
    headers = {"Idempotency-Key": "nightly-1"}
    first = accepted(operator.post("execute", json={"batchSize": 10}, headers=headers))
    assert accepted(operator.post("execute", json={"batchSize": 10}, headers=headers)) == first
    take_up(market)
    assert accepted(operator.post("execute", json={"batchSize": 10}, headers=headers)) == first
    other = operator.post("execute", json={"batchSize": 11}, headers=headers)
    assert (other.status_code, other.json()["errorCode"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert market.value("SELECT count(*) FROM assetclass.operation") == 1


def test_a_key_that_cannot_be_kept_is_refused(operator: httpx.Client) -> None:
    for key in ("x" * 201, "two words", ""):
        response = operator.post("execute", json={}, headers={"Idempotency-Key": key})
        assert response.status_code == 400, key


def test_prefer_wait_answers_when_the_operation_has_ended(
    operator: httpx.Client, market: Market
) -> None:
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(
            operator.post, "execute", json={}, headers={"Prefer": "respond-async, wait=30"}
        )
        wait_until(lambda: market.value("SELECT count(*) FROM assetclass.operation") == 1)
        take_up(market)
        response = answered.result(30)
    accepted(response)
    assert response.json()["data"]["status"] == "succeeded"
    assert response.headers["Preference-Applied"] == "wait=30"


def test_prefer_wait_does_not_wait_longer(operator: httpx.Client) -> None:
    response = operator.post("execute", json={}, headers={"Prefer": "wait=1"})
    assert response.json()["data"]["status"] == "requested"
    assert response.elapsed.total_seconds() < 10


def test_a_rollback_is_asked_for_as_in_the_guide(operator: httpx.Client, market: Market) -> None:
    correction_id = corrected(operator, market)
    recent = operator.get("status").json()["data"]["recentOperations"]
    assert recent[0]["correctionId"] == correction_id
    response = operator.post(
        "rollback",
        json={
            "correctionId": correction_id,
            "reason": "Data quality issues detected",
            "validateAfterRollback": True,
        },
    )
    rollback_id = accepted(response)
    assert response.json()["data"]["kind"] == "rollback"
    assert take_up(market).records_restored == ROWS
    undone = operator.get(f"status/{correction_id}").json()["data"]
    assert undone["rolledBackBy"] == rollback_id
    again = operator.post("rollback", json={"correctionId": correction_id})
    assert (again.status_code, again.json()["errorCode"]) == (409, "ALREADY_ROLLED_BACK")


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"dryRun": True}, 400, "NOT_UNDOABLE"),
        ({"createBackup": False}, 400, "NOT_UNDOABLE"),
    ],
)
def test_what_cannot_be_undone_says_why(
    operator: httpx.Client, market: Market, options: dict[str, Any], status: int, code: str
) -> None:
    correction_id = corrected(operator, market, **options)
    response = operator.post("rollback", json={"correctionId": correction_id})
    assert (response.status_code, response.json()["errorCode"]) == (status, code)


def test_an_expired_backup_is_gone(operator: httpx.Client, market: Market) -> None:
    correction_id = corrected(operator, market)
    market.execute(
        "UPDATE assetclass.backup SET dropped_at = now(), dropped_by = 'schedule', "
        "drop_reason = 'expired'"
    )
    response = operator.post("rollback", json={"correctionId": correction_id})
    assert (response.status_code, response.json()["errorCode"]) == (410, "BACKUP_EXPIRED")


@pytest.mark.parametrize(
    "named", ["5f0c6f0a-5d5b-4f0a-9d2a-0c7a6a4b1e11", "your-operation-id-here", "' OR 1=1 --"]
)
def test_an_unknown_operation_is_not_found(operator: httpx.Client, named: str) -> None:
    for call in ("rollback", "pause", "resume", "cancel"):
        response = operator.post(call, json={"correctionId": named})
        assert response.status_code == 404, call
        assert response.json()["errorCode"] == "OPERATION_NOT_FOUND"
    assert operator.get("status/" + named.replace(" ", "%20")).status_code == 404


def test_operators_undo_their_own_and_administrators_any(
    service: Service, operator: httpx.Client, admin: httpx.Client, market: Market
) -> None:
    by_admin = corrected(admin, market)
    refused = operator.post("rollback", json={"correctionId": by_admin})
    assert (refused.status_code, refused.json()["errorCode"]) == (403, "FORBIDDEN")
    other = make_token(market.dsn, Role.OPERATOR, name=f"other-{uuid4()}")
    with service.client(other) as client:
        assert client.post("rollback", json={"correctionId": by_admin}).status_code == 403
    accepted(admin.post("rollback", json={"correctionId": by_admin}))
    take_up(market)
    by_operator = corrected(operator, market)
    accepted(admin.post("rollback", json={"correctionId": by_operator}))


def test_what_waits_is_cancelled_at_once(operator: httpx.Client) -> None:
    correction_id = accepted(operator.post("execute", json={}))
    response = operator.post("cancel")
    assert accepted(response) == correction_id
    assert response.json()["data"]["status"] == "cancelled"
    assert operator.post("cancel").status_code == 404
    named = operator.post("cancel", json={"correctionId": correction_id})
    assert (named.status_code, named.json()["errorCode"]) == (409, "OPERATION_STATE_CONFLICT")


def test_what_was_cancelled_is_resumed(operator: httpx.Client, market: Market) -> None:
    correction_id = accepted(operator.post("execute", json={}))
    operator.post("cancel")
    response = operator.post("resume", json={"correctionId": correction_id})
    assert accepted(response) == correction_id
    assert response.json()["data"]["status"] == "requested"
    assert take_up(market).records_corrected == ROWS
    done = operator.post("resume", json={"correctionId": correction_id})
    assert done.status_code == 409


def test_what_waits_cannot_be_paused(operator: httpx.Client) -> None:
    accepted(operator.post("execute", json={}))
    assert operator.post("pause").status_code == 409


def test_every_request_and_refusal_is_in_the_audit_log(
    operator: httpx.Client, market: Market
) -> None:
    accepted(operator.post("execute", json={}, headers={"X-Correlation-ID": "first"}))
    operator.post("execute", json={}, headers={"X-Correlation-ID": "second"})
    operator.post("pause", headers={"X-Correlation-ID": "third"})
    entries = audit_entries(market.dsn, "request_operation")[-2:]
    assert [(entry["outcome"], entry["correlation_id"]) for entry in entries] == [
        ("asked", "first"),
        ("OPERATION_IN_PROGRESS", "second"),
    ]
    assert {entry["actor"] for entry in entries} == {"operator"}
    refused = audit_entries(market.dsn, "pause_operation")[-1]
    assert (refused["outcome"], refused["correlation_id"]) == ("OPERATION_STATE_CONFLICT", "third")


CALLS = ("execute", "rollback", "pause", "resume", "cancel", "preview", "validate")


@pytest.mark.parametrize("call", CALLS)
def test_viewers_change_nothing(
    service: Service, tokens: dict[Role, str], market: Market, call: str
) -> None:
    body = json.dumps({"correctionId": str(uuid4())} if call == "rollback" else {})
    assert service.ask("POST", call, tokens[Role.VIEWER], content=body).status_code == 403
    assert service.ask("POST", call, content=body).status_code == 401
    assert market.value("SELECT count(*) FROM assetclass.operation") == 0
