"""Operations and measurements as the watcher of the database sees them: each end, once."""

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine.analysis import remember_quality
from assetclass_pipeline.engine.audit import record_end
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.alert import Alert, AlertStatus
from assetclass_pipeline.model.audit import Actor
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline.monitoring import watching
from assetclass_pipeline.monitoring.alert_store import list_alerts
from assetclass_pipeline.monitoring.watching import Look, look_at_operations
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    keep_alive,
    plan_now,
    report_of,
    request_of,
    undo_now,
)
from assetclass_pipeline_tests.market import Market, open_market

WATCHER = "operation_alerts"


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    """40 bars, all missing."""
    with open_market(database_url) as market:
        yield market.fill(40, symbols=4)


def look(market: Market, settings: Settings | None = None) -> Look:
    """One look on a connection of its own, as a new process takes it."""
    settings = settings or market.settings
    with connect(market.dsn, settings, purpose="test") as connection:
        return look_at_operations(connection, settings, watcher=WATCHER)


def alerts(market: Market, *, include_resolved: bool = False) -> dict[str, Alert]:
    """Alerts by cause."""
    with connect(market.dsn, market.settings, purpose="test") as connection:
        found = list_alerts(connection, market.settings, include_resolved=include_resolved)
    return {alert.cause: alert for alert in found}


def refuse(market: Market, *, above: int = 0) -> None:
    """No row of S1 may be changed: 10 of 40, or those with a higher id."""
    market.execute(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.symbol = 'S1' AND NEW.id > TG_ARGV[0]::bigint THEN "
        "RAISE EXCEPTION 'not this one' USING ERRCODE = 'check_violation'; "
        "END IF; RETURN NEW; END $$"
    )
    market.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION refuse({})",
        market.market_identifier,
        sql.Literal(above),
    )


def allow(market: Market) -> None:
    market.execute("DROP TRIGGER refuse ON {}", market.market_identifier)


def fail(market: Market) -> str:
    """A correction of which the database refuses the second half; its correctionId."""
    refuse(market, above=20)
    request = request_of(workers=1)
    with pytest.raises(AssetClassError):
        correct_now(market, request)
    allow(market)
    return request.correction_id


def test_a_failed_operation_is_one_alert_that_ends_when_it_is_resumed(market: Market) -> None:
    correction_id = fail(market)
    assert "operation_failed:correction" in {alert.cause for alert in look(market).changed}
    alert = alerts(market)["operation_failed:correction"]
    assert (alert.correction_id, alert.occurrences) == (correction_id, 1)
    # Looked at again, by another process, nothing happened.
    assert look(market).events == 0
    assert alerts(market)["operation_failed:correction"].occurrences == 1
    correct_now(market, request_of(correction_id))
    look(market)
    assert "operation_failed:correction" not in alerts(market)


def test_each_failure_is_counted_once(market: Market) -> None:
    fail(market)
    look(market)
    fail(market)
    look(market)
    assert alerts(market)["operation_failed:correction"].occurrences == 2


def test_failures_between_two_looks_are_counted_each(market: Market) -> None:
    fail(market)
    fail(market)
    look(market)
    assert alerts(market)["operation_failed:correction"].occurrences == 2


def test_what_was_mended_before_anybody_looked_is_no_alert(market: Market) -> None:
    correct_now(market, request_of(fail(market)))
    look(market)
    assert alerts(market, include_resolved=True) == {}


def test_rolling_back_what_failed_ends_its_alert(market: Market) -> None:
    correction_id = fail(market)
    look(market)
    undo_now(market, correction_id)
    look(market)
    assert "operation_failed:correction" not in alerts(market)


def test_rolling_back_something_older_does_not(market: Market) -> None:
    older = correct_now(market, request_of(target_symbols=["S0"]))
    fail(market)
    look(market)
    undo_now(market, older)
    look(market)
    assert "operation_failed:correction" in alerts(market)


def test_an_abandoned_operation_is_one_incident_until_its_end(market: Market) -> None:
    request = request_of()
    plan_now(market, request, park=False)
    keep_alive(market)
    look(market)
    assert alerts(market) == {}
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 hour'")
    for _ in range(2):
        look(market)
    alert = alerts(market)["operation_failed:correction"]
    assert (alert.correction_id, alert.occurrences) == (request.correction_id, 1)
    # The next one ends it as interrupted; its own success ends the alert.
    later = correct_now(market)
    assert later.status is Status.SUCCEEDED
    look(market)
    assert alerts(market) == {}
    [only] = alerts(market, include_resolved=True).values()
    assert (only.status, only.occurrences) == (AlertStatus.RESOLVED, 1)


def test_an_interrupted_one_that_was_seen_abandoned_is_no_repeat(market: Market) -> None:
    plan_now(market, request_of(), park=False)
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 hour'")
    look(market)
    planned = plan_now(market, request_of())
    assert planned.status is Status.PLANNED
    look(market)
    assert alerts(market)["operation_failed:correction"].occurrences == 1


def test_one_that_runs_too_long_is_found_before_it_ends(market: Market) -> None:
    request = request_of()
    plan_now(market, request, park=False)
    market.execute("UPDATE assetclass.operation SET started_at = now() - interval '3 hours'")
    for _ in range(2):
        look(market)
    alert = alerts(market)["sla:correction"]
    assert (alert.occurrences, alert.details["limit"]) == (1, 7200)
    assert alert.details["value"] == pytest.approx(10_800, abs=60)
    ended = correct_now(market, request)
    assert ended.status is Status.SUCCEEDED
    look(market)
    assert alerts(market)["sla:correction"].occurrences == 1
    correct_now(market)
    look(market)
    assert alerts(market) == {}


@pytest.mark.parametrize("signal", ["next_process", "window"])
def test_time_in_which_it_was_not_to_run_is_no_violation(market: Market, signal: str) -> None:
    plan_now(market, request_of(), park=False)
    keep_alive(market)
    market.execute("UPDATE assetclass.operation SET started_at = now() - interval '3 hours'")
    market.execute(
        "INSERT INTO assetclass.operation_wait (correction_id, signal, seconds) "
        "SELECT correction_id, %s, 7200 FROM assetclass.operation "
        "ON CONFLICT (correction_id, signal) DO UPDATE SET seconds = 7200",
        values=(signal,),
    )
    look(market)
    assert alerts(market) == {}


def test_a_request_that_nobody_picks_up(market: Market) -> None:
    market.execute(
        "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run, options, "
        "requested_by, requested_at) VALUES (gen_random_uuid(), 'correction', 'requested', "
        "'starting', false, '{{}}', 'test', now() - interval '61 seconds')"
    )
    for _ in range(2):
        look(market)
    assert alerts(market)["sla:pickup"].occurrences == 1
    market.execute("UPDATE assetclass.operation SET status = 'cancelled'")
    look(market)
    assert alerts(market) == {}


def test_too_many_refused_rows_with_their_symbols(market: Market) -> None:
    limits = market.settings.thresholds.model_copy(update={"error_rate": 100.0})
    tolerant = market.settings.model_copy(update={"thresholds": limits})
    refuse(market)
    ended = correct(market.dsn, tolerant, request_of())
    assert (ended.status, ended.records_failed) == (Status.SUCCEEDED, 10)
    look(market, tolerant)
    alert = alerts(market)["error_rate:correction"]
    assert (alert.details["value"], alert.details["limit"]) == (25, 10)
    assert alert.details["worstSymbols"] == [{"symbol": "S1", "errorCode": "23514", "records": 10}]
    allow(market)
    correct(market.dsn, tolerant, request_of())
    look(market)
    assert alerts(market) == {}


def past_operation(market: Market, *, rows: int, seconds: float, ended: str) -> None:
    """A correction of the past in operation, ledger and audit log, as the engine writes them."""
    [(correction_id,)] = market.execute(
        "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run, options, "
        "requested_by, requested_at, started_at, finished_at, records_planned) "
        "SELECT gen_random_uuid(), 'correction', 'succeeded', 'done', false, '{{}}', 'test', "
        "began, began, %s::timestamptz, %s "
        "FROM (SELECT %s::timestamptz - make_interval(secs => %s) AS began) b "
        "RETURNING correction_id::text",
        values=(ended, rows, ended, seconds),
    ).fetchall()
    market.execute(
        "INSERT INTO assetclass.operation_batch (correction_id, first_seq, last_seq, epoch, "
        "worker, records_corrected, records_skipped, duration_ms) "
        "VALUES (%s, 1, %s, 1, 0, %s, 0, 1)",
        values=(correction_id, rows, rows),
    )
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        transaction(connection, market.settings) as cursor,
    ):
        record_end(cursor, as_uuid(correction_id), Actor.system())


def test_slower_than_usual_for_its_size(market: Market) -> None:
    for day in range(1, 6):
        past_operation(market, rows=50_000, seconds=50, ended=f"2026-01-0{day} 03:00+00")
        # Others are of another size and say nothing.
        past_operation(market, rows=500_000, seconds=5000, ended=f"2026-01-0{day} 05:00+00")
    look(market)
    assert alerts(market, include_resolved=True) == {}
    # The audit log tells of an end now, so that is when it ends.
    slow = market.value("SELECT now()::text")
    past_operation(market, rows=50_000, seconds=115, ended=slow)
    look(market)
    alert = alerts(market)["performance:correction"]
    assert alert.details["baseline"] == {"median": 0.001, "mad": 0.0, "runs": 5}
    assert alert.details["secondsLost"] == pytest.approx(65, abs=2)
    past_operation(market, rows=50_000, seconds=55, ended=market.value("SELECT now()::text"))
    look(market)
    assert alerts(market) == {}


def measure(market: Market, **scores: Any) -> None:
    """A measurement of the quality report, with some of its scores changed."""
    report = report_of(market).model_copy(update=scores)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        remember_quality(connection, market.settings, report, source="quality_report")


def test_the_newest_measurement_is_judged_once(market: Market) -> None:
    measure(market, quality_score=89.0)
    look(market)
    look(market)
    found = alerts(market)
    assert found.keys() == {"low_data_quality"}
    alert = found["low_data_quality"]
    assert alert.occurrences == 1
    assert alert.details["worstSymbols"][0]["missing"] == 10
    assert alert.details["worstMonths"][0]["partition"] == "2023-01-01"
    measure(market, quality_score=88.5)
    look(market)
    assert alerts(market)["low_data_quality"].occurrences == 2
    measure(market, quality_score=95.0)
    look(market)
    assert alerts(market) == {}


def test_a_measurement_that_was_overtaken_is_not_judged(market: Market) -> None:
    measure(market, quality_score=50.0)
    measure(market, quality_score=100.0)
    look(market)
    assert alerts(market, include_resolved=True) == {}


def test_quality_is_compared_with_what_is_usual(market: Market) -> None:
    for _ in range(5):
        measure(market, quality_score=99.0)
        look(market)
    assert alerts(market) == {}
    measure(market, quality_score=95.0)
    look(market)
    alert = alerts(market)["data_quality_degraded"]
    assert alert.details["baseline"] == {"median": 99.0, "mad": 0.0, "runs": 5}
    assert (alert.details["value"], alert.details["limit"]) == (95, 98)


def test_orphaned_records_name_their_symbols(market: Market) -> None:
    market.execute("DELETE FROM {} WHERE ticker = 'S2'", market.symbols_identifier)
    measure(market)
    look(market)
    alert = alerts(market)["high_orphaned_records"]
    assert alert.details["value"] == 25
    assert [symbol["symbol"] for symbol in alert.details["worstSymbols"]] == ["S2"]


def test_the_first_look_goes_back_a_day(market: Market) -> None:
    fail(market)
    market.execute("ALTER TABLE assetclass.audit_log DISABLE TRIGGER USER")
    market.execute("UPDATE assetclass.audit_log SET happened_at = now() - interval '25 hours'")
    market.execute("ALTER TABLE assetclass.audit_log ENABLE TRIGGER USER")
    look(market)
    assert alerts(market) == {}
    fail(market)
    look(market)
    assert alerts(market)["operation_failed:correction"].occurrences == 1


def test_a_second_look_waits_for_the_first_one(market: Market) -> None:
    """A tick that Dagster gave up may still be at it when the next one begins."""
    look(market)
    with psycopg.connect(market.dsn) as other:
        other.execute("SELECT FROM assetclass.watch_position FOR UPDATE")
        seconds = market.settings.session.lock_timeout + 0.5
        timer = threading.Timer(seconds, other.rollback)
        timer.start()
        look(market)
        timer.join()


def test_what_fails_while_judging_is_judged_by_the_next_look(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(market)

    def broken(*_: object) -> list[Alert]:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(watching, "judge", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            look(market)
    assert alerts(market) == {}
    look(market)
    assert alerts(market)["operation_failed:correction"].occurrences == 1


def test_many_entries_are_looked_at_in_batches(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_EVENTS", 2)
    for _ in range(3):
        fail(market)
    assert look(market).events == 3
    assert alerts(market)["operation_failed:correction"].occurrences == 3


def test_a_look_ends_in_time_and_the_next_one_goes_on(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_EVENTS", 2)
    monkeypatch.setattr(watching, "LONGEST_LOOK", -1)
    for _ in range(3):
        fail(market)
    seen = [look(market).events for _ in range(4)]
    assert sum(seen) == 3
    assert max(seen) < 3
    assert alerts(market)["operation_failed:correction"].occurrences == 3
