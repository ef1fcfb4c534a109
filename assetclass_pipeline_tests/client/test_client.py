"""The client against the running API: every call, with what it answers and refuses as types."""

import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from assetclass_pipeline import errors
from assetclass_pipeline.api.envelope import render
from assetclass_pipeline.client import AssetClassClient
from assetclass_pipeline.client.refusals import _KINDS
from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.engine.operations import active_id
from assetclass_pipeline.errors import (
    AlertNotFoundError,
    AlreadyRolledBackError,
    AssetClassError,
    BackupExpiredError,
    ForbiddenError,
    IdempotencyKeyReusedError,
    InvalidOptionsError,
    NotUndoableError,
    OperationInProgressError,
    OperationNotFoundError,
    OperationStateError,
    RowNotFoundError,
    UnauthorizedError,
)
from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.model.operation import Kind, Operation, Status
from assetclass_pipeline.model.options import CorrectionOptions, Pace
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.monitoring.alert_store import judge
from assetclass_pipeline_tests.api.service import Service, wait_until
from assetclass_pipeline_tests.api.test_operations import take_up
from assetclass_pipeline_tests.market import Market

ROWS = 60
PAGE = (Path(__file__).parents[2] / "docs/client.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _fresh(market: Market) -> None:
    """No operation yet, and every row missing."""
    market.execute("TRUNCATE assetclass.operation, assetclass.idempotency_key CASCADE")
    market.execute("TRUNCATE assetclass.alert CASCADE")
    market.execute("TRUNCATE {}", market.market_identifier)
    market.execute("TRUNCATE {}", market.symbols_identifier)
    market.fill(ROWS)


@pytest.fixture(scope="module")
def client(service: Service, tokens: dict[Role, str]) -> Iterator[AssetClassClient]:
    """An operator's, as a script has it."""
    with AssetClassClient(service.url, tokens[Role.OPERATOR], correlation_id="from-a-test") as made:
        yield made


def corrected(client: AssetClassClient, market: Market, **options: bool) -> str:
    correction_id = client.execute(CorrectionOptions.model_validate(options))
    take_up(market)
    return correction_id


def test_it_measures(client: AssetClassClient, market: Market) -> None:
    before = market.versions()
    report = client.analyze(top=2)
    assert (report.total_records, report.correctable, len(report.by_symbol)) == (ROWS, ROWS, 2)
    found = client.preview(CorrectionOptions(batch_size=7, target_symbols=["S1", "S2"]))
    assert (found.records, found.batch_size) == (6, 7)
    assert client.preview().records == ROWS
    validation = client.validate()
    assert (validation.passed, validation.report.correctable) == (False, ROWS)
    assert market.versions() == before


def test_it_executes_follows_and_undoes(client: AssetClassClient, market: Market) -> None:
    options = CorrectionOptions(batch_size=10, pace=Pace.FAST)
    correction_id = client.execute(options, reason="no classes", ticket="OPS-1")
    asked = client.operation(correction_id)
    assert (asked.status, asked.reason, asked.ticket) == (Status.REQUESTED, "no classes", "OPS-1")
    assert (asked.options["batchSize"], asked.options["pace"]) == (10, "fast")
    assert (asked.requested_by, asked.correlation_id) == ("token operator", "from-a-test")
    heard: list[Operation] = []
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(client.follow, correction_id, progress=heard.append)
        wait_until(lambda: bool(heard))
        take_up(market)
        correction = ended.result(60)
    assert (correction.status, correction.records_corrected) == (Status.SUCCEEDED, ROWS)
    assert (heard[0].status, heard[-1]) == (Status.REQUESTED, correction)
    status = client.status()
    assert status.recent_operations[0].correction_id == correction_id
    history = client.row_history("1", symbol="S1")
    assert history.rows[0].events[0].correction_id == correction_id

    rollback_id = client.rollback(
        correction_id, RollbackOptions(target_symbols=["S1"]), reason="wrong feed"
    )
    take_up(market)
    rollback = client.follow(rollback_id)
    assert (rollback.kind, rollback.rollback_of) == (Kind.ROLLBACK, correction_id)
    assert (rollback.records_restored, rollback.reason) == (3, "wrong feed")
    assert len(client.status(include_all=True, most=1).recent_operations) == 1


def test_it_cancels_and_resumes(client: AssetClassClient, market: Market) -> None:
    correction_id = client.execute()
    with pytest.raises(OperationStateError, match="only a running one can be paused"):
        client.pause()
    assert client.cancel(correction_id).status is Status.CANCELLED
    assert client.resume(correction_id).status is Status.REQUESTED
    assert take_up(market).correction_id == correction_id


def test_waiting_ends_with_its_time(client: AssetClassClient) -> None:
    correction_id = client.execute()
    assert client.operation(correction_id, wait=1).status is Status.REQUESTED
    client.cancel()
    assert client.operation(correction_id, wait=600).status is Status.CANCELLED


def test_the_same_key_asks_once(client: AssetClassClient) -> None:
    first = client.execute(idempotency_key="nightly")
    assert client.execute(idempotency_key="nightly") == first
    with pytest.raises(IdempotencyKeyReusedError):
        client.execute(CorrectionOptions(batch_size=5), idempotency_key="nightly")
    with pytest.raises(OperationInProgressError, match=first) as caught:
        client.execute()
    assert (caught.value.correction_id, caught.value.exit_status) == (first, 3)
    with pytest.raises(InvalidOptionsError):
        client.execute(idempotency_key="two words")


def test_it_watches(client: AssetClassClient, market: Market) -> None:
    health = client.health()
    # No daemon of Dagster's runs beside this test.
    assert not health.is_healthy
    assert health.components["database"].is_healthy
    assert not health.components["daemon"].is_healthy
    corrected(client, market)
    assert client.metrics().thresholds["qualityScore"] == 90
    assert "\nassetclass_operations_started_total" in client.metrics_text()


def test_alerts_are_listed_and_taken_on(client: AssetClassClient, market: Market) -> None:
    assert client.alerts() == []
    finding = Finding("orphans", AlertType.HIGH_ORPHANED_RECORDS, True, "12 % are orphaned")
    with transaction(market.connection, market.settings) as cursor:
        [opened] = judge(cursor, market.settings, [finding])
    [alert] = client.alerts(most=1, include_resolved=False)
    assert (alert.id, alert.summary) == (opened.id, "12 % are orphaned")
    taken = client.acknowledge(alert.id, note="on it")
    assert (taken.status, taken.acknowledged_by) == ("acknowledged", "token operator")


def test_strangers_are_told_up_or_down_and_nothing_else(service: Service) -> None:
    with AssetClassClient(service.url) as stranger:
        health = stranger.health()
        assert (health.is_healthy, health.components) == (False, {})
        with pytest.raises(UnauthorizedError):
            stranger.status()


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda client: client.operation(str(uuid4())), OperationNotFoundError),
        (lambda client: client.operation("no such id"), OperationNotFoundError),
        (lambda client: client.rollback("yesterday"), OperationNotFoundError),
        (lambda client: client.cancel(), OperationNotFoundError),
        (lambda client: client.row_history("-1"), RowNotFoundError),
        (lambda client: client.acknowledge(4711), AlertNotFoundError),
        (lambda client: client.status(most=1000), InvalidOptionsError),
        (lambda client: client.execute(reason=""), InvalidOptionsError),
    ],
)
def test_refusals_are_the_engines_own_errors(
    client: AssetClassClient, ask: Callable[[AssetClassClient], object], kind: type
) -> None:
    with pytest.raises(kind) as caught:
        ask(client)
    assert type(caught.value) is kind


def test_what_cannot_be_undone(
    client: AssetClassClient, service: Service, tokens: dict[Role, str], market: Market
) -> None:
    with pytest.raises(NotUndoableError):
        client.rollback(corrected(client, market, dry_run=True))
    correction_id = corrected(client, market)
    token = tokens[Role.VIEWER]
    with AssetClassClient(service.url, token) as viewer, pytest.raises(ForbiddenError):
        viewer.rollback(correction_id)
    client.rollback(correction_id)
    take_up(market)
    with pytest.raises(AlreadyRolledBackError):
        client.rollback(correction_id)
    correction_id = corrected(client, market)
    market.execute(
        "UPDATE assetclass.backup SET dropped_at = now(), dropped_by = 'schedule', "
        "drop_reason = 'expired'"
    )
    with pytest.raises(BackupExpiredError):
        client.rollback(correction_id)


FURTHER: dict[type[AssetClassError], dict[str, Any]] = {
    errors.OperationInProgressError: {"correction_id": "id-1"},
    errors.LaterCorrectionError: {"correction_id": "id-1"},
    errors.TooManyRequestsError: {"retry_after": 7.0},
}


@pytest.mark.parametrize("kind", _KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_api_arrives_as_itself(kind: type[AssetClassError]) -> None:
    further = FURTHER.get(kind, {})
    rendered = render(kind("Do this next.", **further))

    def answer(_: httpx.Request) -> httpx.Response:
        content = {"message": rendered.message, "data": rendered.data, "errorCode": rendered.code}
        return httpx.Response(rendered.status, headers=rendered.headers, json=content)

    with (
        AssetClassClient("http://h", transport=httpx.MockTransport(answer), tries=1) as client,
        pytest.raises(kind, match=r"Do this next\.") as caught,
    ):
        client.status()
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in further} == further


def test_no_error_of_ours_is_unknown_to_the_client() -> None:
    codes = {
        found.code
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, AssetClassError)
    }
    assert codes - _KINDS.keys() == {AssetClassError.code}


def test_the_example_of_the_guide_runs_as_written(
    service: Service,
    tokens: dict[Role, str],
    market: Market,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = PAGE.split("## The Python client")[1]
    code, shown = re.findall(r"```(?:python)?\n(.*?)```", part, re.DOTALL)
    (tmp_path / ".assetclass-token").write_text(tokens[Role.OPERATOR] + "\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with ThreadPoolExecutor(1) as pool, redirect_stdout(io.StringIO()) as said:
        pool.submit(_take_up_when_asked, market)
        exec(code.replace("https://prices.example", service.url), {})  # noqa: S102 - our own page
    assert said.getvalue() == shown


def _take_up_when_asked(market: Market) -> None:
    wait_until(lambda: active_id(market.connection, market.settings) is not None)
    take_up(market)


def test_it_needs_neither_driver_nor_dagster() -> None:
    script = (
        "import sys, assetclass_pipeline.client\n"
        "heavy = {'psycopg', 'sqlalchemy', 'dagster', 'fastapi', 'pandas', 'typer'}\n"
        "sys.exit(str(found) if (found := heavy & set(sys.modules)) else 0)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
